"""What a record says of the run itself: its plan, data, weights and machine, and whether it is official."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.worker import PLAN_FILE
from schemas import event as ev
from schemas.chip import Device
from schemas.evaluation import Accuracy
from tests.core.record.run_folder import MEASURED, MakeFolder, RunFolder


def test_what_was_run_is_the_plans(whole: RunFolder) -> None:
    record, plan = whole.record(), whole.plan
    assert (record.id, record.status, record.reason, record.source) == (
        "toy-X1x1x2-base-1",
        "ok",
        None,
        "measured",
    )
    assert (record.official, record.unofficial_reason) == (True, None)
    assert (record.scaled_down, record.emulated) == (False, False)
    assert (record.weights, record.data) == ("random", "generated")
    assert (record.case, record.vendor, record.chip, record.engine, record.run) == (
        "toy", "acme", "X1", "deepspeed", "base",
    )  # fmt: skip
    assert (record.topology.render(), record.parallel.render()) == ("X1x1x2", "TP1PP1DP2")
    assert (record.precision, record.fix_hp) == ("bf16", {"gradient_accumulation_steps": 4})
    assert (record.command, record.plan) == ("accelmark run toy", plan)
    assert record.rankable


def test_what_the_reader_must_know_of_data_time_and_machine(whole: RunFolder) -> None:
    whole.emit(1, ev.WarningEvent, message="telemetry stopped")
    record = whole.record()
    assert record.tokens_trained == 22 * 2 * 100  # without padding
    assert (record.epochs, record.data_manifest_sha256) == (3, "ab" * 32)
    assert (record.environment, record.math_mode) == ({"driver": "570.0"}, {"tf32": "off"})
    assert (record.optimizer, record.warnings) == ("acme.FusedAdamW", ("telemetry stopped",))
    assert (record.started_unix_s, record.duration_s) == (1e9, 45.0)


def test_what_every_rank_warns_of_is_told_once(whole: RunFolder) -> None:
    for rank, message in ((0, "attention is slow"), (1, "attention is slow"), (1, "telemetry stopped")):
        whole.emit(rank, ev.WarningEvent, message=message)
    assert whole.record().warnings == ("attention is slow", "telemetry stopped")


def test_the_accuracy_is_what_rank_0_told(whole: RunFolder) -> None:
    told = Accuracy(value=0.5, standard_error=0.1, questions=30, data="embedded", shots=5, mean_shots=4.5)
    whole.emit(0, ev.AccuracyEvent, benchmark="MMLU", accuracy=told)
    assert whole.record().accuracy == {"MMLU": told}


def test_prepared_data_and_weights_are_named_before_they_are_read(make_folder: MakeFolder) -> None:
    record = make_folder(sets={"data.path": "/data", "weights": "/weights"}).record()
    assert (record.data, record.weights) == ("openwebtext", "pretrained")


def test_a_run_that_goes_on_tells_what_training_began_with_and_where_its_curves_begin(
    make_folder: MakeFolder,
) -> None:
    folder = make_folder(topology="X1x1x1", sets={"weights": "/weights", "checkpoint.load": "/ck/a"})
    folder.start(0)  # from random weights, says the checkpoint
    folder.step(0, "warmup", 46)
    record = folder.record()
    assert (record.weights, record.loss.first_step) == ("random", 46)


def test_an_emulated_chip_or_device_is_told(make_folder: MakeFolder) -> None:
    folder = make_folder("a", topology="EMUx1x1")
    assert folder.record().emulated
    folder = make_folder("b", topology="X1x1x1")
    device = Device(torch_device="acme", index=0, name="n", collective_backend="gloo", math_mode={}, emulated=True)
    folder.emit(0, ev.DeviceEvent, device=device, environment={}, host="h", pid=1)
    record = folder.record()
    assert (record.emulated, record.rankable) == (True, False)
    assert (record.mfu.palm, record.mfu.missing) == (None, "an emulated device")


@pytest.mark.parametrize(
    ("values", "window_s", "reason"),
    [
        ({}, 29.96, "the window took 30.0 s, less than 30.0 s"),
        ({}, 12.3, "the window took 12.3 s, less than 30.0 s"),
        ({}, 30.0, None),
        ({"topology": "REFx1x1"}, 3.0, None),
        ({"sets": {"seed": "1"}}, 3.0, "--set changed seed"),
    ],
)
def test_a_short_window_is_not_official(
    make_folder: MakeFolder, values: dict[str, Any], window_s: float, reason: str | None
) -> None:
    folder = make_folder(**({"topology": "X1x1x1"} | values))
    folder.start(0)
    folder.train(0, window_s)
    folder.finish(0)
    record = folder.record()
    assert (record.official, record.unofficial_reason) == (reason is None, reason)


def test_epochs_that_left_few_steps_make_the_record_unofficial(whole: RunFolder) -> None:
    plan = json.loads((whole.folder / PLAN_FILE).read_text(encoding="utf-8"))
    plan["measure"] |= {"epochs": 3, "steps": MEASURED + 1}
    (whole.folder / PLAN_FILE).write_text(json.dumps(plan), encoding="utf-8")
    record = whole.record()
    assert record.unofficial_reason == f"3 epochs left {MEASURED} measured steps, fewer than {MEASURED + 1}"
