"""Starts the workers of one run, watches them, and sees to it that none is left. Imports no torch."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from rich.console import Console

from core import launch, process, stacks
from core.events import EventListener, EventTail
from core.outcome import OUTCOME_FILE, Outcome, hanging
from core.progress import View, open_view
from core.watch import RankWatch
from core.worker import EXIT_UNWRITABLE
from schemas.plan import Plan

POLL_S = 0.2
GRACE_S = 5.0
"""What workers get between being asked to end and being killed; some ignore the request in native code."""
AGENT_LOG = "agent.log"
BALLAST_FILE = ".ballast"
BALLAST_BYTES = 1 << 20
"""Kept on disk while the run goes on, so that the record can be written when the disk is full."""
DISK_FULL_BYTES = 16 << 10
VMSTAT = Path("/proc/vmstat")


class _Interrupts:
    """Counts signals to end while the run goes on; the second one no longer waits for anybody."""

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
    # SIGHUP: the terminal was closed; under nohup it is ignored, and stays so.
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    numbers = [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupts) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch_run(  # noqa: PLR0913, PLR0917 - what, where, and who is told
    plan: Plan,
    run_dir: Path,
    command: str,
    console: Console,
    node: int = 0,
    listener: EventListener | None = None,
    begun_unix_s: float | None = None,
) -> Outcome:
    """Run ``plan`` in ``run_dir`` (which holds plan.json) to its end, and leave there how it ended.

    ``node``: which one's workers these are, where there are several. ``listener`` is told every event.
    ``begun_unix_s``: when the user began to wait.
    """
    per_node = plan.topology.chips_per_node
    ranks = range(node * per_node, (node + 1) * per_node)
    ballast = run_dir / BALLAST_FILE
    ballast.write_bytes(bytes(BALLAST_BYTES))
    oom_kills = _kernel_oom_kills()
    with _caught_interrupts() as interrupts, (run_dir / AGENT_LOG).open("wb") as log:
        agent = _start_agent(plan, run_dir, log)
        view = open_view(plan, ranks, console, time.monotonic())
        try:
            hang = _watch(plan, ranks, agent, run_dir, view, listener, interrupts)
        finally:
            view.close()
            _end(agent, run_dir, interrupts)
    lost = {} if interrupts.count or hang else _lost_ranks(run_dir / AGENT_LOG)
    outcome = Outcome(
        command=command,
        begun_unix_s=begun_unix_s,
        interrupted=interrupts.count > 0,
        hang=hang,
        node=node,
        exit_code=agent.returncode,
        lost=lost,
        oom_kills=_kernel_oom_kills() - oom_kills,
        disk_full=shutil.disk_usage(run_dir).free < DISK_FULL_BYTES,
    )
    ballast.unlink(missing_ok=True)
    write_outcome(run_dir, outcome)
    return outcome


def _start_agent(plan: Plan, run_dir: Path, log: BinaryIO) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches this process alone, which then ends the workers in order."""
    return subprocess.Popen(
        [sys.executable, *plan.launch[1:]],  # the plan says `python`, so that records hold no local path
        env=launch.environment(plan, run_dir),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=process.die_with_parent_in_child,  # noqa: PLW1509 - takes no lock of another thread
    )


def write_outcome(run_dir: Path, outcome: Outcome) -> None:
    """Keep how the run ended; where even that cannot be written, the record says what the events say."""
    with contextlib.suppress(OSError):
        (run_dir / OUTCOME_FILE).write_text(outcome.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _kernel_oom_kills() -> int:
    """Processes that the kernel has ended so far for lack of memory (proc_vmstat(5)); 0 where it does not tell."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _watch(  # noqa: PLR0913, PLR0917 - a run has that many parts
    plan: Plan,
    ranks: range,
    agent: subprocess.Popen[bytes],
    run_dir: Path,
    view: View,
    listener: EventListener | None,
    interrupts: _Interrupts,
) -> str | None:
    """Show events until the agent ends or is to be ended; what hangs, if that is why."""
    tail = EventTail(run_dir)
    now = time.monotonic()
    watches = {rank: RankWatch(rank, plan.measure, now) for rank in ranks}
    while True:
        ended = agent.poll() is not None
        now = time.monotonic()
        for event in tail.poll():
            view.show(event, now)
            if listener is not None:
                listener(event)
            if event.rank in watches:  # those of other nodes are gathered at the end
                watches[event.rank].observe(event, now)
        view.tick(now)
        if interrupts.count and not ended:
            view.say(f"interrupted: the workers get {GRACE_S:.0f} s to end; once more, and they are killed")
        if ended or interrupts.count:
            return None
        overdue = {rank: why for rank, watch in watches.items() if (why := watch.overdue(now))}
        if overdue:
            return _describe_hang(plan, run_dir, agent, watches, overdue)
        time.sleep(POLL_S)


def _describe_hang(
    plan: Plan,
    run_dir: Path,
    agent: subprocess.Popen[bytes],
    watches: dict[int, RankWatch],
    overdue: dict[int, str],
) -> str:
    """Who hangs where, in one line, from the stacks that the ranks leave in the run folder."""
    pids = stacks.ranks_of(process.descendants(agent.pid))
    places = dict.fromkeys(overdue, "has no process") | stacks.ask_for_dumps(run_dir, pids)
    places = {rank: places[rank] for rank in sorted(places) if not watches[rank].ended}
    heard = {rank: watches[rank].place for rank in places}
    guilty = stacks.culprits(places)
    why = next((overdue[rank] for rank in guilty if rank in overdue), next(iter(overdue.values())))
    return f"{hanging(plan, heard, places)}: {why}"


def _end(agent: subprocess.Popen[bytes], run_dir: Path, interrupts: _Interrupts) -> None:
    """Nothing that this run started is alive when this returns."""
    if agent.poll() is None:
        agent.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while agent.poll() is None and time.monotonic() < deadline and interrupts.count < 2:
            time.sleep(0.05)
    process.kill_session(agent.pid, signal.SIGKILL)
    agent.wait()
    # An agent that was killed has left its workers to the kernel's signal, which takes a moment.
    process.end_all(process.with_variable(launch.RUN_DIR_VARIABLE, str(run_dir)), GRACE_S)


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
    if exit_code == EXIT_UNWRITABLE:
        return "could not write to the run folder (full, limited or read-only)"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal has no name
        name = "no name"
    return f"was ended by signal {-exit_code} ({name})"
