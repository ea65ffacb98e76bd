"""Who holds what: coordinates, layers, parameters and the pipeline's bubble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from core.cases import resolve
from core.commands.tables import bubble_line, placement_table
from core.layout import bubble_fraction, coordinates, placement, stage_layers
from schemas.hyperparameters import HyperParameters
from schemas.plan import Placement, Plan
from schemas.units import Parallel

LLAMA2_70B = resolve("cases/llama2_70b").case


def hyper(**changes: Any) -> HyperParameters:
    values = {"precision": "bf16", "local_batch_size": 1, "sequence_length": 4096, "learning_rate": 1e-5}
    return HyperParameters.model_validate(values | changes)


def test_tensor_ranks_are_neighbours_and_pipeline_ranks_furthest_apart() -> None:
    layout = Parallel(tp=2, pp=2, dp=3)
    places = [coordinates(layout, rank) for rank in range(12)]
    assert [place.tensor for place in places] == [0, 1] * 6
    assert [place.data for place in places] == [0, 0, 1, 1, 2, 2] * 2
    assert [place.pipeline for place in places] == [0] * 6 + [1] * 6


def test_without_model_parallelism_the_rank_is_the_data_parallel_rank() -> None:
    layout = Parallel(tp=1, pp=1, dp=4)
    assert [coordinates(layout, rank).data for rank in range(4)] == [0, 1, 2, 3]
    assert placement(hyper(), LLAMA2_70B.model, layout) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [(0, 7)]),
        ({"pipeline_parallel": 4}, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ({"pipeline_parallel": 2, "virtual_pipeline_stages": 2}, [(0, 1), (2, 3), (4, 5), (6, 7)]),
        ({"pipeline_parallel": 3, "pipeline_layers": "3-4-1"}, [(0, 2), (3, 6), (7, 7)]),
    ],
)
def test_layers_of_the_stages(changes: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    stages = stage_layers(hyper(**changes), 8)
    assert [(stage[0], stage[-1]) for stage in stages] == expected


@pytest.mark.parametrize(
    ("pp", "gas", "virtual", "bubble"), [(8, 44, 1, 7 / 51), (4, 8, 2, 3 / 19), (1, 8, 1, 0.0), (4, 1, 1, 3 / 4)]
)
def test_the_bubble(pp: int, gas: int, virtual: int, bubble: float) -> None:
    changes = {"gradient_accumulation_steps": gas, "virtual_pipeline_stages": virtual}
    assert bubble_fraction(hyper(pipeline_parallel=pp, **changes)) == pytest.approx(bubble)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (8, 1), (1, 4), (2, 10), (8, 4)])
def test_the_parts_of_70b_are_70b(tp: int, pp: int) -> None:
    """Norms are not split: each tensor parallel rank holds them, and they count once."""
    hp = hyper(tensor_parallel=tp, pipeline_parallel=pp)
    found = placement(hp, LLAMA2_70B.model, Parallel(tp=tp, pp=pp, dp=2))
    assert found is not None
    of_one_replica = sum(place.parameters for place in found.ranks if place.data == 0)
    norms = (2 * LLAMA2_70B.model.num_layers + 1) * LLAMA2_70B.model.hidden_size
    assert of_one_replica - (tp - 1) * norms == 68_976_648_192


def placed(**sets: Any) -> Placement:
    hp = hyper(tensor_parallel=2, pipeline_parallel=2, gradient_accumulation_steps=6, **sets)
    found = placement(hp, LLAMA2_70B.model, Parallel(tp=2, pp=2, dp=1))
    assert found is not None
    return found


def test_interleaved_ranks_hold_several_stages() -> None:
    assert [place.layers for place in placed(virtual_pipeline_stages=2).ranks] == [
        ((0, 19), (40, 59)), ((0, 19), (40, 59)), ((20, 39), (60, 79)), ((20, 39), (60, 79)),
    ]  # fmt: skip


def test_the_table_shows_every_rank() -> None:
    console = Console(width=100, record=True)
    found = placed(pipeline_layers="41-39")
    console.print(placement_table(found))
    console.print(bubble_line(found), soft_wrap=True)
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[:5] for row in rows] == [
        ["0", "0", "0", "0", "0-40"], ["1", "1", "0", "0", "0-40"],
        ["2", "0", "1", "0", "41-79"], ["3", "1", "1", "0", "41-79"],
    ]  # fmt: skip
    assert rows[0][5] == "17,672,323,072"
    assert lines[-1].startswith("pipeline bubble: 14.3%, (p - 1) / (m * v + p - 1)")


def test_a_plan_of_32_chips_places_all_of_them(make_plan: Callable[..., Plan]) -> None:
    sets = {"tensor_parallel": 4, "pipeline_parallel": 2}
    plan = make_plan(topology="X1x4x8", engine="megatron", sets=sets)
    assert plan.placement is not None
    assert plan.parallel.render() == "TP4PP2DP4"
    assert [place.rank for place in plan.placement.ranks] == list(range(32))
    assert Plan.model_validate_json(plan.model_dump_json()).placement == plan.placement
    assert make_plan().placement is None
