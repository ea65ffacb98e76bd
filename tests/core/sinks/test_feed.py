"""What sinks are told of a run, and that one that fails costs the run nothing but a line."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest
from rich.console import Console

from core import cli, runner, sinks, torchrun
from core.errors import DeviceError
from core.events import event_file
from core.sinks import SINKS, SinkSpec, feed, values
from core.sinks.feed import Feed
from schemas.plan import Plan
from schemas.record import Record
from tests.conftest import python_path
from tests.core.progress import recorded
from tests.core.sinks import fakes
from tests.core.sinks.conftest import RUN

ROOT = Path(__file__).parents[3]
Told = dict[str, fakes.Fake]


def test_each_step_is_told_once_with_all_that_is_known(
    told: Told, feed_run: Callable[..., str], run_dir: Path, plan: Plan
) -> None:
    assert feed_run("Fake") == ""
    fake = told["Fake"]
    assert (fake.folder, fake.run, fake.plan) == (run_dir / "Fake", RUN, plan)
    assert list(fake.steps) == list(range(1, 13))
    assert fake.steps[12] == {
        "train/loss": 3.14159,
        "train/grad_norm": 1.0,
        "train/learning_rate": 1e-5,
        "speed/step_time_s": 2.0,
        "speed/tokens_per_second_per_chip": 8192.0,
        "speed/mfu_flagperf": pytest.approx(6 * 7e9 * 8192 / 989e12),
        "speed/mfu_palm": pytest.approx((6 * 7e9 + 12 * 4 * 64 * 2048) * 8192 / 989e12),
        "device/memory_max_gib": 40.0,
    }
    assert fake.record is not None
    assert values.of_record(fake.record) == {
        "result/tokens_per_second_per_chip": 8191.5,
        "result/mfu_flagperf": 0.348,
        "result/loss": 3.0,
    }


def test_telemetry_is_told_with_the_next_step(told: Told, plan: Plan, run_dir: Path, console: Console) -> None:
    through = Feed(("Fake",), plan, run_dir, console)
    for rank, watts in ((0, 600.0), (1, 700.0)):
        through.put(recorded.sample(rank, power_w=watts, temperature_c=watts / 10, memory_used_gib=watts / 100))
    through.put(recorded.step(3))
    through._relay.close(10)
    known = told["Fake"].steps[3]
    assert (known["device/power_mean_w"], known["device/temperature_max_c"]) == (650.0, 70.0)
    assert known["device/memory_max_gib"] == 7.0


def test_settings_are_flat_and_plain(plan: Plan) -> None:
    told = values.settings(plan)
    assert (told["case"], told["topology"], told["parallel"]) == ("toy", "X1x1x2", "TP1PP1DP2")
    assert (told["precision"], told["learning_rate"], told["measure.warmup_steps"]) == ("bf16", 1e-5, 2)
    assert all(isinstance(value, (str, int, float)) for value in told.values())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("FailsToOpen", "sink FailsToOpen stopped: PermissionError: no entry\n"),
        ("FailsToLog", "sink FailsToLog stopped: OSError: no space left\n"),
        ("FailsToClose", "sink FailsToClose stopped: ValueError: not like this\n"),
    ],
)
def test_a_sink_that_fails_is_dropped_with_one_line_and_the_others_go_on(
    told: Told, feed_run: Callable[..., str], name: str, line: str
) -> None:
    assert feed_run(name, "Fake") == line  # on a quiet console, too
    assert len(told["Fake"].steps) == 12
    assert told["Fake"].record is not None
    if name == "FailsToLog":
        assert (list(told[name].steps), told[name].record) == ([1, 2], None)


def test_nobody_waits_for_a_sink_that_is_stuck(
    told: Told, feed_run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "CLOSE_WITHIN_S", 0.1)
    fakes.MAY_GO_ON.clear()
    started = time.monotonic()
    assert feed_run("Stuck") == "sinks that have not ended after 0 s are left behind\n"
    assert time.monotonic() - started < 5
    fakes.MAY_GO_ON.set()


def test_without_a_sink_there_is_no_thread(told: Told, feed_run: Callable[..., str]) -> None:
    before = threading.active_count()
    assert feed_run() == ""
    assert (threading.active_count(), told) == (before, {})


def test_under_torchrun_sinks_are_told_when_the_run_is_over(
    told: Told, plan: Plan, run_dir: Path, console: Console, make_record: Callable[..., Record]
) -> None:
    """In the order of time, though each rank has a file of its own."""
    for rank in (0, 1):
        steps = [recorded.step(n, rank=rank, memory_allocated_gib=10.0 * n + rank) for n in (1, 2)]
        timed = [step.model_copy(update={"time_unix_s": 1e9 + step.step - rank / 2}) for step in steps]
        file = event_file(run_dir, rank)
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(step.model_dump_json() + "\n" for step in timed), encoding="utf-8")
    torchrun._tell_sinks(("Fake",), plan, run_dir, make_record(), console)
    fake = told["Fake"]
    assert fake.times_s == [1e9 + 1, 1e9 + 2]
    assert [known["device/memory_max_gib"] for known in fake.steps.values()] == [11.0, 21.0]
    assert fake.record is not None


MISSING = SinkSpec("nowhere:Nothing", ("no_such_package", "json"))


def test_a_missing_package_is_an_error_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sinks.SINKS, "tensorboard", MISSING)  # type: ignore[arg-type]
    monkeypatch.setattr(runner, "launch_run", None)
    out = tmp_path / "runs"
    code = cli.main(["run", "llama2_7b", "--config", "CPUx1x2", "--sink", "tensorboard", "--out", str(out)])
    assert code == 3
    error = capsys.readouterr().err
    assert error.startswith("error: --sink tensorboard needs no_such_package, not installed for ")
    assert "pip install 'accelmark[tensorboard]', or leave --sink tensorboard out" in error
    assert not out.exists()


def test_a_folder_of_its_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``./wandb`` is what Weights & Biases itself leaves behind."""
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sinks.SINKS, "wandb", MISSING)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="needs no_such_package, not installed"):
        sinks.require(["wandb"])


def test_an_unknown_sink_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "llama2_7b", "--sink", "excel"])
    assert "invalid choice: 'excel'" in capsys.readouterr().err


def test_every_sink_has_an_extra() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for name, spec in SINKS.items():
        required = setup["options.extras_require"][name].replace("mlflow-skinny", "mlflow").split()
        assert [line.partition(">")[0] for line in required] == list(spec.packages)


def test_none_is_imported_unless_asked_for() -> None:
    script = (
        "import sys; from core.commands import run_command; from core import runner; "
        f"sys.exit(any(name in sys.modules for name in {[p for spec in SINKS.values() for p in spec.packages]}))"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": python_path()}, check=False, cwd=ROOT)
    assert done.returncode == 0
