"""What a schema refuses beyond the types of its fields, and what follows from its values."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.case import HardwareConfig, Run
from schemas.chip import ChipSpec, Device, Peak, TelemetryReading
from schemas.event import EventAdapter, StepEvent
from schemas.hyperparameters import HyperParameters, Measure
from schemas.model import DecoderSpec
from schemas.record import Record

MODEL: dict[str, Any] = {
    "factory": "acme.models:Big", "nominal_parameters": 7_000_000_000, "hidden_size": 64, "intermediate_size": 96,
    "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 100, "max_positions": 128, "norm_eps": 1e-5,
}  # fmt: skip
HP: dict[str, Any] = {
    "precision": "bf16",
    "local_batch_size": 1,
    "sequence_length": 128,
    "learning_rate": 1e-5,
}
RECORD: dict[str, Any] = {
    "id": "r", "status": "ok", "source": "measured", "official": True, "scaled_down": False, "emulated": False,
    "weights": "random", "data": "generated", "case": "c", "vendor": "v", "chip": "X1", "topology": "X1x1x8",
    "engine": "torch", "run": "base", "precision": "bf16", "parallel": "TP1PP1DP8",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": 66}, "hidden_size 66 is not a multiple of num_heads 4"),
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"hidden_size": 60}, "the odd head size 15; rope turns channels in pairs"),
        ({"factory": "acme.models"}, "String should match pattern"),
        ({"num_layers": 0}, "greater than 0"),
        ({"norm_eps": 0.0}, "greater than 0"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DecoderSpec(**(MODEL | changes))


def test_alibi_has_no_pairs_to_turn() -> None:
    assert DecoderSpec(**(MODEL | {"hidden_size": 60, "position": "alibi"})).head_size == 15


@pytest.mark.parametrize(
    "changes",
    [
        {"local_batch_size": 0},
        {"gradient_accumulation_steps": -1},
        {"zero_stage": 4},
        {"adam_beta2": 1.0},
        {"learning_rate": 0.0},
        {"precision": "int8"},
        {"batch_size": 3},
    ],
)
def test_hyper_parameters_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    ((field, value),) = changes.items()
    with pytest.raises(ValidationError, match=field) as error:
        HyperParameters(**(HP | changes))
    assert error.value.errors()[0]["input"] == value


def test_a_window_has_at_least_one_step() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Measure(steps=0)


def test_the_runs_of_a_config_have_names_of_their_own() -> None:
    given = {"vendor": "acme", "topology": "X1x1x8", "engine": "torch"}
    with pytest.raises(ValidationError, match="'base' is there twice"):
        HardwareConfig(**given, runs=(Run(id="base"), Run(id="base")))
    with pytest.raises(ValidationError, match="at least 1 item"):
        HardwareConfig(**given, runs=())
    assert HardwareConfig(**given, runs=(Run(id="base"),)).name == "X1x1x8"


@pytest.mark.parametrize("value", [64, 0.5, True, "amp", None])
def test_overrides_keep_the_type_they_were_written_in(value: object) -> None:
    run = Run.model_validate({"id": "base", "fix_hp": {"key": value}})
    again = Run.model_validate_json(run.model_dump_json())
    assert (type(again.fix_hp["key"]), again.fix_hp["key"]) == (type(value), value)


def test_a_peak_nobody_published_is_none_with_a_reason() -> None:
    known = Peak(precision="bf16", tflops=989.0, source="datasheet")
    chip = ChipSpec(name="X1", vendor="acme", memory_gb=80, memory_source="datasheet", peaks=(known,))
    assert chip.peak("bf16") is known
    assert chip.peak("fp8").tflops is None
    assert chip.peak("fp8").source == "no fp8 peak is recorded for X1"
    with pytest.raises(ValidationError, match="a precision has two peaks"):
        ChipSpec(name="X1", vendor="acme", memory_gb=80, memory_source="datasheet", peaks=(known, known))
    with pytest.raises(ValidationError, match="greater than 0"):
        Peak(precision="bf16", tflops=0.0, source="unknown peaks are None")


def test_a_device_is_of_the_type_before_the_colon() -> None:
    made = {"index": 1, "name": "X1", "collective_backend": "accl", "math_mode": {}}
    assert Device(torch_device="acme:1", **made).type == "acme"
    assert Device(torch_device="cpu", **made).type == "cpu"


def test_telemetry_that_is_unknown_is_none() -> None:
    assert set(TelemetryReading().model_dump().values()) == {None}
    with pytest.raises(ValidationError, match="power_w"):
        TelemetryReading(power_w=-1.0)


def test_events_are_told_apart_by_kind() -> None:
    line = (
        '{"time_unix_s": 1.0, "elapsed_s": 0.5, "rank": 3, "kind": "step", "phase": "measure", "step": 7, '
        '"total_steps": null, "step_time_s": 0.25, "loss": null, "grad_norm": 1.5, "learning_rate": 1e-5, '
        '"label_tokens": 10, "real_tokens": 10, "padded_tokens": 0}'
    )
    event = EventAdapter.validate_json(line)
    assert isinstance(event, StepEvent)
    assert (event.rank, event.step, event.loss) == (3, 7, None)
    assert EventAdapter.validate_json(EventAdapter.dump_json(event)) == event
    with pytest.raises(ValidationError, match="'setp' found using 'kind' does not match"):
        EventAdapter.validate_json(line.replace('"step", "phase"', '"setp", "phase"'))


@pytest.mark.parametrize(
    ("changes", "rankable"),
    [
        ({}, True),
        ({"status": "oom"}, False),
        ({"official": False}, False),
        ({"scaled_down": True}, False),
        ({"emulated": True}, False),
    ],
)
def test_only_whole_official_runs_are_ranked(changes: dict[str, Any], rankable: bool) -> None:
    assert Record(**(RECORD | changes)).rankable is rankable


@pytest.mark.parametrize(
    "changes", [{"status": "fine"}, {"schema_version": 2}, {"topology": "X1"}, {"id": "../r"}, {"id": "r" * 256}]
)
def test_a_record_of_another_shape_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes))):
        Record(**(RECORD | changes))
