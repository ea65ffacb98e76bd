"""Starts the workers of one run, watches them, and sees to it that none is left. Imports no torch."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from core import launch, process
from core.events import EventTail
from core.progress import View, open_view
from core.record import OUTCOME_FILE, Outcome
from schemas.plan import Plan

POLL_S = 0.2
GRACE_S = 5.0
"""What workers get between being asked to end and being killed; some ignore the request in native code."""
AGENT_LOG = "agent.log"


class _Interrupts:
    """Counts SIGINT and SIGTERM while the run goes on; the second one no longer waits for anybody."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


@contextmanager
def _caught_interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupts) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch_run(plan: Plan, run_dir: Path, command: str, console: Console) -> Outcome:
    """Run ``plan`` in ``run_dir`` (which holds plan.json) to its end, and leave there how it ended."""
    with _caught_interrupts() as interrupts, (run_dir / AGENT_LOG).open("wb") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the workers in order.
        agent = subprocess.Popen(
            [sys.executable, *plan.launch[1:]],  # the plan says `python`, so that records hold no local path
            env=launch.environment(plan, run_dir),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=process.die_with_parent_in_child,  # noqa: PLW1509 - no thread is running yet
        )
        view = open_view(plan, console)
        try:
            hang = _watch(plan, agent, EventTail(run_dir), view, interrupts)
        finally:
            view.close()
            _end(agent, interrupts)
    lost = {} if interrupts.count or hang else _lost_ranks(run_dir / AGENT_LOG)
    outcome = Outcome(
        command=command, interrupted=interrupts.count > 0, hang=hang, exit_code=agent.returncode, lost=lost
    )
    (run_dir / OUTCOME_FILE).write_text(outcome.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return outcome


def _watch(
    plan: Plan, agent: subprocess.Popen[bytes], tail: EventTail, view: View, interrupts: _Interrupts
) -> str | None:
    """Show events until the agent ends or is to be ended; what hangs, if that is why."""
    heard = time.monotonic()
    while True:
        ended = agent.poll() is not None
        for event in tail.poll():
            view.show(event)
            # Telemetry keeps coming from a thread while a collective hangs: only the rest is progress.
            if event.kind != "telemetry":
                heard = time.monotonic()
        if ended or interrupts.count:
            return None
        silent_s = time.monotonic() - heard
        if silent_s > plan.measure.timeout_s:
            return f"no progress for {silent_s:.0f} s (measure.timeout_s is {plan.measure.timeout_s:g})"
        time.sleep(POLL_S)


def _end(agent: subprocess.Popen[bytes], interrupts: _Interrupts) -> None:
    """Nothing that this run started is alive when this returns."""
    if agent.poll() is None:
        agent.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while agent.poll() is None and time.monotonic() < deadline and interrupts.count < 2:
            time.sleep(0.05)
    process.kill_session(agent.pid, signal.SIGKILL)
    agent.wait()


_LOST = re.compile(r"^\s*rank\s*:\s*(\d+).*?\n\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE)


def _lost_ranks(agent_log: Path) -> dict[int, str]:
    """Ranks that the agent reports as failed, with their signal or exit code, from its log; the first cause first.

    The agent ends the others with SIGTERM and then lists them, too.
    """
    text = agent_log.read_text(encoding="utf-8", errors="replace")
    later, _, first = text.partition("Root Cause (first observed failure)")
    ended = [(rank, int(code)) for rank, code in _LOST.findall(later) if int(code) != -signal.SIGTERM]
    causes = [(rank, int(code)) for rank, code in _LOST.findall(first)]
    return {int(rank): _how(code) for rank, code in causes + ended}


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal has no name
        name = "no name"
    return f"was ended by signal {-exit_code} ({name})"
