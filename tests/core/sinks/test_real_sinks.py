"""What TensorBoard, Weights & Biases and MLflow really hold afterwards, read back by their own readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.sinks import SINKS
from tests.core.sinks.conftest import RUN

CANARY = "canary-5d1f0c"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must not get into any file."""
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    monkeypatch.setenv("WANDB_API_KEY", CANARY * 4)


@pytest.fixture
def fed(request: pytest.FixtureRequest, feed_run: Callable[..., str], run_dir: Path) -> Path:
    """The folder of the sink that the test is about (its parameter), after a run."""
    name = request.param
    for package in SINKS[name].packages:
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'accelmark[{name}]')")
    assert feed_run(name, status="crashed", reason="rank 1 in step 13: a reason") == ""
    files = [file for file in run_dir.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
    assert [folder.name for folder in run_dir.iterdir()] == [name]
    return run_dir / name


@pytest.mark.parametrize("fed", ["tensorboard"], indirect=True)
def test_tensorboard_has_an_event_file(fed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (file,) = fed.iterdir()
    assert file.name.startswith("events.out.tfevents.")
    events = EventAccumulator(str(fed)).Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 13))
    assert [event.value for event in losses] == pytest.approx([3.14159] * 12)
    assert losses[0].wall_time == 1e9
    (result,) = events.Scalars("result/tokens_per_second_per_chip")
    assert (result.step, result.value) == (12, 8191.5)
    start, end = (
        HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/session_{what}_info").plugin_data.content)
        for what in ("start", "end")
    )
    assert start.session_start_info.hparams["topology"].string_value == "X1x1x2"
    assert start.session_start_info.hparams["learning_rate"].number_value == 1e-5
    assert end.session_end_info.status == api_pb2.STATUS_FAILURE


def _leveldb_log(content: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log after wandb's own seven bytes: in blocks of 32 KiB, whole (1) or parts (2 to 4)."""
    assert content[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(content):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        _checksum, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.parametrize("fed", ["wandb"], indirect=True)
def test_wandb_has_an_offline_run(fed: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    (folder,) = fed.glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    records = [Record.FromString(text) for text in _leveldb_log(file.read_bytes())]
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("toy", RUN)
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (settings["topology"], settings["learning_rate"]) == ("X1x1x2", 1e-5)
    history = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item} for row in history]
    assert [row["_step"] for row in rows] == list(range(1, 13))
    assert [row["train/loss"] for row in rows] == pytest.approx([3.14159] * 12)
    assert rows[0]["time_unix_s"] == 1e9
    assert [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"] == [1]
    summaries = [record.summary for record in records if record.WhichOneof("record_type") == "summary"]
    told = {item.key: json.loads(item.value_json) for summary in summaries for item in summary.update}
    assert (told["result/tokens_per_second_per_chip"], told["status"]) == (8191.5, "crashed")
    assert not list(folder.rglob("requirements.txt"))


@pytest.mark.parametrize("fed", ["mlflow"], indirect=True)
def test_mlflow_has_a_store(fed: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{fed}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (RUN, "FAILED")
    assert (run.info.end_time, run.data.tags["status"]) == (1_000_000_040_000, "crashed")
    assert run.data.tags["reason"] == "rank 1 in step 13: a reason"
    assert (run.data.params["topology"], run.data.params["learning_rate"]) == ("X1x1x2", "1e-05")
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == list(range(1, 13))
    assert {metric.timestamp for metric in losses} == {1_000_000_000_000}
    assert run.data.metrics["result/tokens_per_second_per_chip"] == 8191.5
