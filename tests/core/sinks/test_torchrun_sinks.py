"""Under torchrun every process is a rank, and one of them alone may write what a tracker reads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from core.record import read_record
from tests.faults.faults import Scene, execute, install_saboteur


@pytest.mark.slow
def test_two_ranks_write_one_event_file_with_each_step_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip(
        "tensorboard", reason="tensorboard is not installed (pip install 'accelmark[tensorboard]')"
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scene = Scene(tmp_path, tmp_path_factory.getbasetemp() / "accelmark-cache")
    install_saboteur(tmp_path / "site")
    agent = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    words = ["cases/llama2_7b", "--config", "SABOx1x2", "--run", "torch", "--sink", "tensorboard"]
    command = [sys.executable, *agent, "-m", "--", "core.run", *words, "--out", str(scene.out)]
    done = execute(command, scene, "")
    assert done.returncode == 0, done.stderr
    (file,) = scene.out.rglob("events.out.tfevents.*")
    (record_file,) = scene.out.glob("*/record.json")
    assert file.parent == record_file.parent / "tensorboard"
    record, events = read_record(record_file), EventAccumulator(str(file.parent)).Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 9))
    assert [event.value for event in losses] == pytest.approx(record.loss.curve)
    (rate,) = events.Scalars("result/tokens_per_second_per_chip")
    assert record.throughput is not None
    assert rate.value == pytest.approx(record.throughput.tokens_per_second_per_chip)
