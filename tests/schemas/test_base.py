"""What a person is told when a value is wrong: the file, the field, the value, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.base import RecordId, Schema, Text, explain, problems
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec
from schemas.units import MemoryUse, Topology


class Sheet(Schema):
    id: RecordId
    topology: Topology
    memory: MemoryUse | None = None
    hyper_parameters: HyperParameters
    texts: tuple[Text, ...] = ()


GOOD: dict[str, Any] = {
    "id": "r",
    "topology": "H800x2x8",
    "hyper_parameters": {
        "precision": "bf16",
        "local_batch_size": 1,
        "sequence_length": 2048,
        "learning_rate": 1e-5,
    },
}


def told(**changes: Any) -> str:
    hp = GOOD["hyper_parameters"] | changes.pop("hp", {})
    with pytest.raises(ValidationError) as error:
        Sheet.model_validate(GOOD | {"hyper_parameters": hp} | changes)
    return explain(error.value, "sheet.json")


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"price": 3}, ["sheet.json: price: unknown field (value 3); remove it or correct its spelling"]),
        (
            {"topology": "H800x2"},
            ["sheet.json: topology: 'H800x2' is not a Topology; write it like 'H800x2x8' (got 'H800x2')"],
        ),
        (
            {"memory": "77 GB"},
            ["sheet.json: memory: '77 GB' is not a MemoryUse; write it like '77/80' (got '77 GB')"],
        ),
        (
            {"hp": {"local_batch_size": -4}},
            ["sheet.json: hyper_parameters.local_batch_size: Input should be greater than 0 (got -4)"],
        ),
        (
            {"hp": {"precision": "bf8"}},
            ["sheet.json: hyper_parameters.precision: Input should be 'fp32', 'tf32', 'amp', 'fp16', 'bf16' or "
             "'fp8' (got 'bf8')"],
        ),
        ({"texts": [{"zh": "甲"}]}, ["sheet.json: texts.0.en: this field is missing"]),
        (
            {"id": "a b", "topology": {"chip": "H800", "nodes": -2, "chips_per_node": 8}},
            ["sheet.json: id: String should match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$' (got 'a b')",
             "sheet.json: topology.nodes: Input should be greater than 0 (got -2)"],
        ),
    ],
)  # fmt: skip
def test_every_problem_is_a_line_with_file_field_and_value(changes: dict[str, Any], lines: list[str]) -> None:
    assert told(**changes).splitlines() == lines


def test_a_long_value_is_cut_short() -> None:
    message = told(hp={"precision": "x" * 500})
    assert "xxx..." in message
    assert len(message) < 300


def test_values_that_clash_are_named_by_the_message_alone() -> None:
    with pytest.raises(ValidationError) as error:
        DecoderSpec(
            factory="m:f", nominal_parameters=1, hidden_size=10, intermediate_size=1, num_layers=1, num_heads=3,
            num_kv_heads=3, vocab_size=2, max_positions=1, norm_eps=1e-5,
        )  # fmt: skip
    message = "hidden_size 10 is not a multiple of num_heads 3"
    assert problems(error.value) == [("", message)]
    assert explain(error.value, "here") == f"here: (whole value): {message}"


def test_a_text_that_is_no_json_is_told_as_a_whole() -> None:
    with pytest.raises(ValidationError) as error:
        Sheet.model_validate_json('{"id": ')
    assert explain(error.value, "sheet.json").startswith("sheet.json: (whole value): Invalid JSON: EOF")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_are_finite(number: float) -> None:
    assert "learning_rate: Input should be a finite number (got" in told(hp={"learning_rate": number})


def test_schemas_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sheet.model_validate(GOOD).id = "other"  # type: ignore[misc]
