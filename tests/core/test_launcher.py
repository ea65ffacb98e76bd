"""The launcher's own part, with stand-ins for torch's agent: what it notices, and that nothing is left alive."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from rich.console import Console

from core import launcher
from core.launcher import launch_run
from core.record import OUTCOME_FILE, Outcome
from schemas.plan import Plan

AGENT_SAYS = """\
W1121 03:44:11.829000 18502 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 18507 closing signal SIGTERM
E1121 03:44:11.831000 18502 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 18508) of binary: python
Traceback (most recent call last):
  File "torch/distributed/launcher/api.py", line 383, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
core.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-21_03:44:11
  host      : localhost
  rank      : 2 (local_rank: 2)
  exitcode  : 7 (pid: 18509)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
[2]:
  time      : 2026-11-21_03:44:11
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 18507)  (SIGTERM)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 18507
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_03:44:11
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 18508)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 18508
============================================================
"""  # noqa: E501 - as torch 2.13 printed it, paths shortened


def lost(tmp_path: Path, text: str) -> list[tuple[int, str]]:
    (tmp_path / "agent.log").write_text(text, encoding="utf-8")
    return list(launcher._lost_ranks(tmp_path / "agent.log").items())


def test_the_first_cause_comes_first_and_whom_the_agent_ended_is_not_lost(tmp_path: Path) -> None:
    assert lost(tmp_path, AGENT_SAYS) == [
        (1, "was ended by signal 9 (SIGKILL)"),
        (2, "ended with exit code 7"),
    ]


def test_a_single_failure_has_no_others_before_it(tmp_path: Path) -> None:
    _, header, cause = AGENT_SAYS.partition("Root Cause")
    assert lost(tmp_path, header + cause) == [(1, "was ended by signal 9 (SIGKILL)")]
    ended_from_outside = (header + cause).replace("-9", "-15")
    assert lost(tmp_path, ended_from_outside) == [(1, "was ended by signal 15 (SIGTERM)")]


@pytest.mark.parametrize("text", ["", "/usr/bin/python: No module named torch", "rank : x\nexitcode : y"])
def test_a_log_without_failures_has_no_lost_ranks(tmp_path: Path, text: str) -> None:
    assert lost(tmp_path, text) == []


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (1, "ended with exit code 1"),
        (-6, "was ended by signal 6 (SIGABRT)"),
        (-41, "was ended by signal 41 (no name)"),
    ],
)
def test_how_a_rank_ended(code: int, how: str) -> None:
    assert launcher._how(code) == how


@pytest.fixture
def launched(tmp_path: Path, make_plan: Callable[..., Plan]) -> Callable[..., Outcome]:
    """Launches a Python script in the place of torch's agent."""

    def launch(script: str, timeout_s: float = 60.0) -> Outcome:
        sets = {f"measure.{name}timeout_s": str(timeout_s) for name in ("", "setup_", "start_")}
        plan = make_plan(topology="X1x1x1", sets=sets)
        plan = plan.model_copy(update={"launch": ("python", "-c", dedent(script))})
        console = Console(file=io.StringIO())
        outcome = launch_run(plan, tmp_path, "accelmark run toy", console)
        assert Outcome.model_validate_json((tmp_path / OUTCOME_FILE).read_bytes()) == outcome
        return outcome

    return launch


def test_a_run_that_ends_by_itself(launched: Callable[..., Outcome], tmp_path: Path) -> None:
    script = "import os, sys; print(os.environ['ACCELMARK_RUN_DIR']); sys.exit(3)"
    outcome = launched(script)
    assert outcome == Outcome(command="accelmark run toy", exit_code=3)
    assert (tmp_path / "agent.log").read_text(encoding="utf-8").strip() == str(tmp_path)


TALKATIVE = """
    import os, pathlib, time
    folder = pathlib.Path(os.environ["ACCELMARK_RUN_DIR"], "events")
    folder.mkdir()
    with (folder / "rank00000.jsonl").open("w", buffering=1) as file:
        for _ in range({times}):
            file.write('{{"time_unix_s": 1e9, "elapsed_s": 1.0, "rank": 0, {event}}}\\n')
            time.sleep(0.1)
"""


def test_a_run_without_progress_is_ended_as_hanging(launched: Callable[..., Outcome]) -> None:
    """Telemetry comes from a thread of its own, which goes on while a collective hangs."""
    script = TALKATIVE.format(times=600, event='"kind": "telemetry", "reading": {"power_w": 90.0}')
    started = time.monotonic()
    outcome = launched(script, timeout_s=1.5)
    assert outcome.hang is not None
    assert outcome.hang.startswith("rank 0 before it started has no process: no progress for ")
    assert outcome.hang.endswith("(measure.start_timeout_s is 1.5)")
    assert outcome.exit_code == -signal.SIGTERM
    assert time.monotonic() - started < 30


def test_a_run_with_progress_is_not(launched: Callable[..., Outcome]) -> None:
    script = TALKATIVE.format(times=25, event='"kind": "phase", "phase": "data"')
    assert launched(script, timeout_s=1.5) == Outcome(command="accelmark run toy", exit_code=0)


STUBBORN = """
    import os, pathlib, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(os.environ["ACCELMARK_RUN_DIR"], "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)
"""


def test_an_interrupted_run_leaves_nothing_alive(
    launched: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent ignores the request to end, and has a child: both are killed after the grace."""
    pids = tmp_path / "pids"

    class Interrupted(launcher._Interrupts):
        @property
        def count(self) -> int:
            return int(pids.exists() and bool(pids.read_text(encoding="utf-8")))

        @count.setter
        def count(self, _: int) -> None: ...

    @contextmanager
    def interrupted() -> Iterator[launcher._Interrupts]:
        yield Interrupted()

    monkeypatch.setattr(launcher, "_caught_interrupts", interrupted)
    monkeypatch.setattr(launcher, "GRACE_S", 0.3)
    outcome = launched(STUBBORN)
    assert outcome.interrupted
    assert (outcome.exit_code, outcome.lost, outcome.hang) == (-signal.SIGKILL, {}, None)
    started = [int(pid) for pid in pids.read_text(encoding="utf-8").split()]
    deadline = time.monotonic() + 5
    while any(map(_alive, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in started if _alive(pid)] == []


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_signals_are_counted_and_then_answered_as_before() -> None:
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in asked]
    with launcher._caught_interrupts() as interrupts:
        for number in asked:
            os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while interrupts.count < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert interrupts.count == 3
    assert [signal.getsignal(number) for number in asked] == before


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with launcher._caught_interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert interrupts.count == 0
    finally:
        signal.signal(signal.SIGHUP, before)
