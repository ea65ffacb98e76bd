"""How long a rank may be silent in each phase, and what its stack says of where it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from core import process, stacks
from core.watch import RankWatch
from schemas import event as ev
from schemas.chip import TelemetryReading
from schemas.hyperparameters import Measure
from tests.conftest import python_path

AT: dict[str, Any] = {"time_unix_s": 1e9, "elapsed_s": 1.0, "rank": 1}
MEASURE = Measure(start_timeout_s=10, setup_timeout_s=100, timeout_s=1)
STEP = ev.StepEvent(
    **AT, phase="warmup", step=7, total_steps=None, step_time_s=1.0, loss=1.0, grad_norm=1.0, learning_rate=1.0,
    label_tokens=1, real_tokens=1, padded_tokens=0,
)  # fmt: skip


def watched(*events: ev.Event) -> RankWatch:
    watch = RankWatch(1, MEASURE, now=0.0)
    for event in events:
        watch.observe(event, now=5.0)
    return watch


@pytest.mark.parametrize(
    ("events", "until", "setting", "place"),
    [
        ([], 10, "start_timeout_s is 10", "before it started"),
        ([ev.PhaseEvent(**AT, phase="start")], 15, "start_timeout_s is 10", "in phase start"),
        ([ev.PhaseEvent(**AT, phase="setup")], 105, "setup_timeout_s is 100", "in phase setup"),
        ([ev.PhaseEvent(**AT, phase="warmup")], 105, "setup_timeout_s is 100", "in phase warmup"),
        ([ev.PhaseEvent(**AT, phase="warmup"), STEP], 6, "timeout_s is 1", "after step 7"),
    ],
)
def test_each_phase_has_its_time(events: list[ev.Event], until: float, setting: str, place: str) -> None:
    watch = watched(*events)
    assert watch.overdue(until) is None
    assert setting in (watch.overdue(until + 0.1) or "")
    assert watch.place == place


def test_what_threads_of_their_own_emit_is_no_progress() -> None:
    watch = watched()
    watch.observe(ev.TelemetryEvent(**AT, reading=TelemetryReading(power_w=90.0)), now=9.0)
    watch.observe(ev.HeartbeatEvent(**AT, step=3), now=9.0)
    assert watch.overdue(10.1)


@pytest.mark.parametrize("last", [ev.FinishEvent(**AT), ev.ErrorEvent(
    **AT, status="oom", step=1, reason="r", traceback="t")])  # fmt: skip
def test_a_rank_that_has_ended_is_not_waited_for(last: ev.Event) -> None:
    assert watched(last).overdue(1e6) is None


DUMP = """\
Thread 0x00007f0000000001 (most recent call first):
  File "/lib/python3.11/threading.py", line 320 in wait

Current thread 0x00007f0000000002 (most recent call first):
"""


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        (['"/x/torch/distributed/distributed_c10d.py", line 2 in all_reduce',
          '"/x/torch/distributed/c10d_logger.py", line 3 in wrapper',
          '"/x/core/engines/base.py", line 4 in global_loss'], "waits in all_reduce"),
        (['"/x/torch/autograd/graph.py", line 2 in _engine_run_backward'], "waits in _engine_run_backward"),
        (['"/x/core/clock.py", line 2 in wait', '"/x/core/loop.py", line 3 in _resolve'],
         "waits for its device in wait (clock.py:2)"),
        (['"/x/acme/plugin.py", line 31 in nap', '"/x/torch/distributed/a.py", line 2 in hook'],
         "is in nap (plugin.py:31)"),
        ([], "gave no stack"),
    ],
)  # fmt: skip
def test_where_a_rank_is(frames: list[str], told: str) -> None:
    assert stacks.describe(DUMP + "".join(f"  File {frame}\n" for frame in frames)) == told


def test_who_does_not_wait_for_others_is_the_culprit() -> None:
    assert stacks.culprits({0: "waits in all_reduce", 1: "is in nap (a.py:1)"}) == [1]
    assert stacks.culprits({0: "waits in all_reduce", 1: "is stopped by a signal"}) == [1]
    assert stacks.culprits({0: "waits in all_reduce", 1: "waits in recv"}) == [0, 1]


SLEEPER = """
    import pathlib, sys, time
    from core import stacks
    stacks.dump_on_request(pathlib.Path(sys.argv[1]), 3)
    def nap():
        time.sleep(60)
    nap()
"""


def test_a_process_in_native_code_dumps_its_stack_when_asked(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", dedent(SLEEPER), str(tmp_path)], env=os.environ | {"PYTHONPATH": python_path()}
    )
    try:
        deadline = time.monotonic() + 20
        while not stacks.stack_file(tmp_path, 3).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert stacks.ask_for_dumps(tmp_path, {3: child.pid}) == {3: "is in nap (<string>:6)"}
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_a_worker_whose_agent_is_gone_already_ends_at_once() -> None:
    script = "from core import process; process.die_with_parent('NOT_SET_ANYWHERE'); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-9, "")


def test_processes_are_found_by_a_variable_of_theirs() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ | {"MARK_A1": "b"}
    )
    deadline = time.monotonic() + 10
    while not process.with_variable("MARK_A1", "b") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [found.pid for found in process.with_variable("MARK_A1", "b")] == [child.pid]
    process.end_all([psutil.Process(child.pid)], within_s=5.0)
    assert not psutil.pid_exists(child.pid)
