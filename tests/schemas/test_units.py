"""Every notation is read and written without loss, and what is none of it is refused by name."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from schemas.units import (
    Assignment,
    FixHp,
    MemoryUse,
    ModuleNames,
    Parallel,
    Percent,
    PipelineLayers,
    Topology,
    Unit,
    round_half_up,
)

COUNTS = st.integers(min_value=1, max_value=10**6)
AMOUNTS = st.decimals(min_value=0, max_value=10**6, places=2, allow_nan=False)
CHIPS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,11}", fullmatch=True).filter(
    lambda chip: not re.search(r"x[0-9]+$", chip)
)
WORDS = st.text(min_size=1, max_size=8)

PARSED = (
    (Topology, {"chip": CHIPS, "nodes": COUNTS, "chips_per_node": COUNTS}),
    (Parallel, {"tp": COUNTS, "pp": COUNTS, "dp": COUNTS}),
    (PipelineLayers, {"counts": st.lists(COUNTS, min_size=1, max_size=9)}),
    (ModuleNames, {"names": st.lists(st.sampled_from(["q_proj", "v", "k_2"]), min_size=1)}),
    (MemoryUse, {"used_gib": AMOUNTS, "capacity_gib": AMOUNTS}),
    (Percent, {"value": AMOUNTS}),
    (Assignment, {"key": WORDS, "value": WORDS, "remark": st.none() | WORDS}),
)


def built(unit: type[Unit], fields: dict[str, Any]) -> Unit | None:
    """The unit of ``fields``, or None where its rules refuse them."""
    try:
        return unit(**fields)
    except ValidationError:
        return None


UNITS = st.one_of(*(st.fixed_dictionaries(f).map(lambda v, u=u: built(u, v)) for u, f in PARSED)).filter(bool)
CHANGES = st.lists(
    st.fixed_dictionaries(dict(PARSED[-1][1])).map(lambda v: built(Assignment, v)).filter(bool), max_size=4
).map(lambda changes: FixHp(assignments=tuple(changes)))


@given(UNITS | CHANGES)
def test_what_is_rendered_is_parsed_to_the_same_value(value: Unit) -> None:
    assert type(value).parse(value.render()) == value
    assert TypeAdapter(type(value)).validate_json(TypeAdapter(type(value)).dump_json(value)) == value


def texts(unit: type[Unit]) -> st.SearchStrategy[str]:
    return st.from_regex(unit.pattern, fullmatch=True)


@given(
    st.sampled_from((*(unit for unit, _ in PARSED), FixHp)).flatmap(
        lambda unit: st.tuples(st.just(unit), texts(unit))
    )
)
def test_what_is_parsed_is_rendered_to_the_same_text(example: tuple[type[Unit], str]) -> None:
    unit, text = example
    try:
        value = unit.parse(text)
    except ValidationError as error:
        # Besides the notation: a chip named like a topology, a device without memory.
        assert re.search("ends like a topology|greater than 0", str(error))  # noqa: PT017
        return
    assert value.render() == text


@pytest.mark.parametrize(
    ("unit", "text", "fields"),
    [
        (Topology, "H800x2x8", {"chip": "H800", "nodes": 2, "chips_per_node": 8}),
        (Topology, "MLU370-X8x1x8", {"chip": "MLU370-X8", "nodes": 1, "chips_per_node": 8}),
        (Topology, "X1.5x1x2", {"chip": "X1.5", "nodes": 1, "chips_per_node": 2}),
        (Parallel, "TP4PP8DP1", {"tp": 4, "pp": 8, "dp": 1}),
        (PipelineLayers, "19-20-21-20", {"counts": (19, 20, 21, 20)}),
        (PipelineLayers, "80", {"counts": (80,)}),
        (ModuleNames, "q_proj+v_proj", {"names": ("q_proj", "v_proj")}),
        (MemoryUse, "37.30/40", {"used_gib": Decimal("37.30"), "capacity_gib": Decimal(40)}),
        (Percent, "16.3%", {"value": Decimal("16.3")}),
        (Assignment, "数据精度=fp16", {"key": "数据精度", "value": "fp16", "remark": None}),
        (Assignment, "GAS=64(globalbs=2M tokens)", {"key": "GAS", "value": "64", "remark": "globalbs=2M tokens"}),
    ],
)
def test_published_notations(unit: type[Unit], text: str, fields: dict[str, Any]) -> None:
    assert unit.parse(text) == unit(**fields)
    assert unit(**fields).render() == str(unit.parse(text)) == text


def test_a_fix_hp_cell_lists_its_changes_and_a_slash_is_none() -> None:
    parsed = FixHp.parse("GAS=64(globalbs=2M, tokens), LBS=4")
    assert [(a.key, a.value, a.remark) for a in parsed.assignments] == [
        ("GAS", "64", "globalbs=2M, tokens"),
        ("LBS", "4", None),
    ]
    assert FixHp.parse("/") == FixHp()
    assert FixHp().render() == "/"


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (Topology, "H800"),
        (Topology, "H800x2"),
        (Topology, "H800x-2x8"),
        (Topology, "H800x0x8"),
        (Topology, "H800x02x8"),
        (Topology, "H800x2x٨"),  # a digit, but not one that is written back
        (Topology, "H800 x2x8"),
        (Topology, "H800x2x8\n"),
        (Parallel, "TP4DP1"),
        (Parallel, "tp4pp8dp1"),
        (Parallel, "TP-4PP8DP1"),
        (PipelineLayers, "10,10"),
        (PipelineLayers, "10-0"),
        (PipelineLayers, "10-"),
        (ModuleNames, "q_proj,v_proj"),
        (ModuleNames, "+v_proj"),
        (MemoryUse, "77"),
        (MemoryUse, "-77/80"),
        (MemoryUse, "077/80"),
        (MemoryUse, "77/80 GiB"),
        (Percent, "16.3"),
        (Percent, "-16.3%"),
        (Assignment, "GAS"),
        (Assignment, "GAS=64()"),
        (FixHp, "GAS=64,LBS=4"),
        (FixHp, ""),
    ],
)
def test_another_text_is_refused_by_value_with_an_example(unit: type[Unit], text: str) -> None:
    with pytest.raises(ValidationError) as error:
        unit.model_validate(text)
    assert f"{text!r} is not a" in str(error.value)
    assert "write it like" in str(error.value)


@pytest.mark.parametrize(
    ("unit", "fields", "wrong"),
    [
        (Topology, {"chip": "H800", "nodes": -2, "chips_per_node": 8}, -2),
        (Parallel, {"tp": 0, "pp": 1, "dp": 1}, 0),
        (PipelineLayers, {"counts": (10, 0)}, 0),
        (PipelineLayers, {"counts": ()}, ()),
        (ModuleNames, {"names": ()}, ()),
        (MemoryUse, {"used_gib": "-1", "capacity_gib": "80"}, "-1"),
        (MemoryUse, {"used_gib": "1", "capacity_gib": "0"}, "0"),
        (Percent, {"value": -3}, -3),
        (Percent, {"value": "nan"}, "nan"),
        (Assignment, {"key": "a", "value": "1", "remark": ""}, ""),
        (Assignment, {"key": "a=b", "value": "1"}, "a=b=1"),
        (Topology, {"chip": "H800/2", "nodes": 1, "chips_per_node": 8}, "H800/2x1x8"),
        (Topology, {"chip": "H800x2", "nodes": 1, "chips_per_node": 8}, "H800x2"),
    ],
)
def test_a_value_that_cannot_be_is_named(unit: type[Unit], fields: dict[str, Any], wrong: object) -> None:
    with pytest.raises(ValidationError) as error:
        unit(**fields)
    assert repr(wrong) in str(error.value)


class Sheet(BaseModel):
    """Something that holds units, as every schema does."""

    topology: Topology
    share: Percent | None = None


def test_units_are_texts_in_json() -> None:
    sheet = Sheet.model_validate({"topology": "H800x2x8", "share": "16.30%"})
    assert json.loads(sheet.model_dump_json()) == {"topology": "H800x2x8", "share": "16.30%"}
    assert sheet.model_dump() == {"topology": "H800x2x8", "share": "16.30%"}
    schema = Sheet.model_json_schema()["properties"]["topology"]
    assert re.fullmatch(schema["pattern"], schema["examples"][0])
    assert not re.fullmatch(schema["pattern"], "H800")


@pytest.mark.parametrize(
    ("fraction", "printed"),
    [(0.3605, "36.1%"), (0.36049999, "36.0%"), (0.16309807886754296, "16.3%"), (1.0, "100.0%"), (0.0, "0.0%"),
     (-0.0001, "0.0%")],
)  # fmt: skip
def test_a_share_is_rounded_half_up_as_the_reports_round(fraction: float, printed: str) -> None:
    assert Percent.of_fraction(fraction).render() == printed


@pytest.mark.parametrize(
    ("value", "decimals", "rounded"),
    [
        (36.05, 1, "36.1"),  # Python's own format gives 36.0: the float is a little less
        (Decimal("36.05"), 1, "36.1"),
        (2.5, 0, "3"),
        (3.5, 0, "4"),
        (-2.5, 0, "-3"),
        (37.3, 2, "37.30"),
        (0.04, 1, "0.0"),
        (1e-7, 1, "0.0"),
    ],
)
def test_ties_are_rounded_away_from_zero(value: float | Decimal, decimals: int, rounded: str) -> None:
    assert str(round_half_up(value, decimals)) == rounded


@given(st.floats(min_value=-1e9, max_value=1e9, allow_nan=False), st.integers(min_value=0, max_value=6))
def test_rounding_moves_a_value_by_half_a_digit_at_most(value: float, decimals: int) -> None:
    rounded = round_half_up(value, decimals)
    assert -rounded.as_tuple().exponent == decimals
    assert abs(rounded - Decimal(repr(value))) * 2 <= Decimal(1).scaleb(-decimals)
    assert round_half_up(rounded, decimals) == rounded
