"""Whole runs on the CPU, through the command line: what they leave behind when they end well, and when not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch")

from core.launch import RUN_DIR_VARIABLE
from core.record import read_record
from schemas.record import Record
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
TINY = (
    "model.hidden_size=32", "model.intermediate_size=48", "model.num_layers=2", "model.num_heads=2",
    "model.num_kv_heads=2", "sequence_length=32", "measure.warmup_steps=2", "measure.steps=4",
    "data.generated_sequences=64",
)  # fmt: skip


def command(tmp_path: Path, *more: str, case: str = "cases/llama2_7b") -> list[str]:
    sets = [part for value in TINY for part in ("--set", value)]
    return ["-m", "core.run", case, "--config", "CPUx1x2", *sets, "--out", str(tmp_path), *more]


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"ACCELMARK_CACHE": str(tmp_path / "cache"), "PYTHONPATH": python_path()}


def run(tmp_path: Path, *more: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command(tmp_path, *more, **options)],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@contextlib.contextmanager
def endless_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """One that measures, and would go on; whatever becomes of the test, nothing of it is left."""
    process = subprocess.Popen(
        [sys.executable, *command(tmp_path, "--engine", "torch", "--set", "measure.steps=1000000")],
        cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "measure step" in line:
                break
        yield process
    finally:
        process.kill()
        for pid in workers_of(only_run_dir(tmp_path)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def only_run_dir(tmp_path: Path) -> Path:
    (folder,) = tmp_path.glob("*-CPUx1x*")
    return folder


def only_record(tmp_path: Path) -> Record:
    return read_record(only_run_dir(tmp_path) / "record.json")


def workers_of(run_dir: Path) -> list[int]:
    """Processes that were started for ``run_dir`` and are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_DIR_VARIABLE) == str(run_dir) and process.status() != "zombie":
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_a_run_leaves_plan_events_record_report_and_plots(tmp_path: Path) -> None:
    done = run(tmp_path, "--engine", "torch", "--json", "--set", "measure.profile_steps=1")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    run_dir, record = only_run_dir(tmp_path), only_record(tmp_path)
    assert Record.model_validate_json(json.dumps(told)) == record
    assert {"plan.json", "record.json", "report.md", "loss.svg", "throughput.svg", "memory.svg"} <= {
        file.name for file in run_dir.iterdir()
    }
    assert len(list((run_dir / "events").iterdir())) == 2
    assert record.status == "ok"
    assert record.scaled_down
    assert not record.official
    assert record.data == "generated"
    assert record.throughput is not None
    assert record.throughput.measured_steps == 4
    assert record.parameters is not None
    assert record.parameters.trainable == record.parameters.total
    assert len(record.loss.curve) == 6
    assert record.tokens_trained == 6 * 4 * 2 * 2 * 32
    assert record.mfu.palm is None
    assert record.mfu.missing
    assert record.profile is not None
    assert {"matrix_products", "loss", "optimizer"} <= {name for name, s in record.profile.seconds.items() if s}
    assert (run_dir / record.profile.trace).is_file()
    assert record.environment["torch"]
    assert record.command is not None
    assert record.command.startswith("python -m core.run cases/llama2_7b")
    assert "measure step 6/6" in done.stderr
    assert "\x1b[" not in done.stderr


@pytest.mark.deepspeed
def test_the_default_job_under_deepspeed_learns(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    done = subprocess.run(
        [sys.executable, "-m", "core.run", "cases/baichuan2_13b", "--config", "CPUx1x2", "--out", str(tmp_path)],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = only_record(tmp_path)
    assert (record.engine, record.status, record.official) == ("deepspeed", "ok", True)
    assert record.loss.first is not None
    assert record.loss.last is not None
    assert record.loss.last < record.loss.first / 2
    assert not record.rankable


def test_under_torchrun_every_process_is_a_rank_and_rank_0_builds_the_record(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *command(tmp_path, "--engine", "torch", "--json")],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert told["status"] == "ok"
    assert only_record(tmp_path).id == told["id"]
    assert len(list((only_run_dir(tmp_path) / "events").iterdir())) == 2
    assert done.stderr.count("measure step 6/6") == 1  # rank 0 shows its progress, and nobody else


@pytest.mark.deepspeed
def test_runs_of_deepspeed_follow_one_another_in_the_processes_of_torchrun(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    case = tmp_path / "case"
    case.mkdir()
    shutil.copy(ROOT / "cases" / "llama2_7b" / "__init__.py", case)
    config = (ROOT / "cases" / "llama2_7b" / "config_CPUx1x2.py").read_text()
    twice = config.replace('runs=(Run(id="base"),)', 'runs=(Run(id="first"), Run(id="second"))')
    assert twice != config
    (case / "config_CPUx1x2.py").write_text(twice)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *command(tmp_path, "--json", case=str(case))],
        cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first["loss"]["curve"] == pytest.approx(second["loss"]["curve"])


FAULTS = {
    "oom": ("model.intermediate_size=4000000000", "oom", "memory"),
    "nan": ("learning_rate=1e38", "nan", "loss is nan"),
    "raises": ("weights=docs", "crashed", "docs holds 0 *.safetensors files"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_run_leaves_a_record_with_the_reason(fault: str, tmp_path: Path) -> None:
    setting, status, words = FAULTS[fault]
    done = run(tmp_path, "--engine", "torch", "--set", setting, "--set", "clip_grad_norm=0")
    record = only_record(tmp_path)
    assert record.status == status, record.reason
    assert record.reason is not None
    assert words in record.reason
    assert record.reason.startswith("rank ")
    assert "\n" not in record.reason
    assert done.returncode == 1
    assert f"{status}: rank" in done.stderr
    assert workers_of(only_run_dir(tmp_path)) == []
    assert (only_run_dir(tmp_path) / "report.md").read_text(encoding="utf-8").count(status)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_everything_and_keeps_what_was_measured(times: int, tmp_path: Path) -> None:
    with endless_run(tmp_path) as process:
        assert len(workers_of(only_run_dir(tmp_path))) == 3, "two ranks and their agent"
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        process.communicate(timeout=60)
        assert process.returncode == 130
        record = only_record(tmp_path)
        assert record.status == "interrupted"
        assert record.reason is not None
        assert record.reason.startswith("interrupted after step")
        assert len(record.loss.curve) >= 2
        assert workers_of(only_run_dir(tmp_path)) == []


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    with endless_run(tmp_path) as process:
        events = (only_run_dir(tmp_path) / "events" / "rank00001.jsonl").read_text(encoding="utf-8").splitlines()
        pid = next(event["pid"] for event in map(json.loads, events) if event["kind"] == "device")
        os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == 1
        record = only_record(tmp_path)
        assert record.status == "crashed"
        assert record.reason is not None
        assert "rank 1" in record.reason
        assert workers_of(only_run_dir(tmp_path)) == []
