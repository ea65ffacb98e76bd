from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.report.check import Finding, MfuBasis, check
from schemas.base import Text
from schemas.record import Loss, Memory, Mfu, Record, Throughput
from schemas.report import Cell, Column, PerformanceTable, Report, Row, ValueColumn

MakeRecord = Callable[..., Record]
WHY = Text(zh="原表如此", en="as in print")
COLUMNS: tuple[Column, ...] = (
    ValueColumn(shows="tokens_per_second_per_chip", title="token/p/s"),
    ValueColumn(shows="loss", title="loss"),
    ValueColumn(shows="memory", title="mem"),
    ValueColumn(shows="mfu", title="MFU"),
)
GOOD = {"token/p/s": "2068", "loss": "2.06", "mem": "77/80", "MFU": "16.3%"}


@pytest.fixture
def record(make_record: MakeRecord) -> Record:
    return make_record(
        id="r",
        source="published",
        throughput=Throughput(tokens_per_second_per_chip=2068),
        loss=Loss(last=2.06),
        memory=Memory(peak_device_gib=77, capacity_gib=80),
        mfu=Mfu(flagperf=2068 * 7.8e10 / 989e12, flops_per_token={"flagperf": 7.8e10}, peak_tflops=989),
    )


def findings(record: Record, *, bases: dict[str, MfuBasis] | None = None, **cells: str | Cell) -> list[Finding]:
    """Check a one-row sheet of GOOD cells, some replaced by ``cells`` (by column; ``tokens`` is token/p/s)."""
    given = GOOD | {{"tokens": "token/p/s"}.get(name, name): cell for name, cell in cells.items()}
    row = tuple(cell if isinstance(cell, Cell) else Cell(literal=cell) for cell in given.values())
    table = PerformanceTable(columns=COLUMNS, rows=(Row(record="r", cells=row),))
    report = Report(id="s", case="c", vendor="v", title=WHY, blocks=(table,))
    return check(report, {record.id: record}, bases)


def rules(found: list[Finding]) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.rule, finding.columns) for finding in found]


def with_(record: Record, **changes: Any) -> Record:
    return record.model_copy(update=changes)


def test_a_sheet_that_follows_from_its_records_has_no_finding(record: Record) -> None:
    assert findings(record) == []


@pytest.mark.parametrize(
    ("column", "literal"), [("tokens", "2067"), ("loss", "2.6"), ("mem", "77/81"), ("MFU", "16.4%")]
)
def test_a_literal_that_the_record_does_not_render_to(record: Record, column: str, literal: str) -> None:
    found = findings(record, bases=None, **{column: literal})
    assert [finding.rule for finding in found] == ["literal"]
    assert found[0].in_data
    assert literal in found[0].message.en
    assert literal in found[0].message.zh


def test_a_literal_without_a_value_in_the_record(record: Record) -> None:
    assert rules(findings(with_(record, loss=Loss()))) == [("literal", ("loss",))]


def test_a_cell_said_to_be_missing_that_the_record_has(record: Record) -> None:
    assert rules(findings(record, loss=Cell(missing="slash"))) == [("missing", ("loss",))]
    assert findings(with_(record, loss=Loss()), loss=Cell(missing="slash")) == []


def test_a_needless_exception_is_a_finding(record: Record) -> None:
    assert rules(findings(record, loss=Cell(literal="2.06", as_published=WHY))) == [("needless", ("loss",))]


def test_swapped_cells_are_named_together(record: Record) -> None:
    found = findings(
        record, loss=Cell(literal="77/80", as_published=WHY), mem=Cell(literal="2.06", as_published=WHY)
    )
    assert rules(found) == [("swapped", ("loss", "mem"))]
    assert not found[0].in_data
    assert "loss = 2.06, mem = 77/80" in found[0].message.en


def test_two_swaps_with_one_cell_in_common_are_not_both_claimed(record: Record) -> None:
    found = findings(
        record,
        tokens=Cell(literal="70/80", as_published=WHY),
        loss=Cell(literal="77/80", as_published=WHY),
        mem=Cell(literal="2.06", as_published=WHY),
    )
    assert rules(found) == [("swapped", ("token/p/s", "mem")), ("notation", ("loss",))]


@pytest.mark.parametrize(
    ("column", "literal", "said"),
    [
        ("loss", "77/80", "a memory value"),
        ("loss", "nan", "something else"),
        ("mem", "3.20", "3.20 is a number, not a memory value"),
        ("MFU", "0.163", "not a percentage"),
        ("tokens", "21%", "a percentage, not a number"),
    ],
)
def test_a_value_of_another_kind_is_impossible(record: Record, column: str, literal: str, said: str) -> None:
    found = findings(record, bases=None, **{column: Cell(literal=literal, as_published=WHY)})
    assert [finding.rule for finding in found] == ["notation"]
    assert said in found[0].message.en


def test_more_memory_than_there_is(record: Record) -> None:
    over = with_(record, memory=Memory(peak_device_gib=90, capacity_gib=80))
    found = findings(over, mem="90/80")
    assert rules(found) == [("memory", ("mem",))]
    assert "90.0 GiB used of a capacity of 80.0 GiB" in found[0].message.en


def test_an_mfu_over_the_peak(record: Record) -> None:
    assert rules(findings(with_(record, mfu=Mfu(flagperf=1.02)), MFU="102.0%")) == [("mfu_over_peak", ("MFU",))]


def test_an_mfu_that_does_not_follow_from_the_throughput(record: Record) -> None:
    wrong = with_(record, mfu=record.mfu.model_copy(update={"flagperf": 0.263}))
    found = findings(wrong, MFU="26.3%")
    assert rules(found) == [("mfu_inconsistent", ("MFU",))]
    assert "2068 × 7.8e+10 / 989e12 = 16.3%" in found[0].message.en


def test_the_caller_may_know_the_peak_better(record: Record) -> None:
    bare = with_(record, mfu=Mfu(flagperf=record.mfu.flagperf))
    assert findings(bare) == []
    assert findings(bare, bases={"r": MfuBasis(7.8e10, 989)}) == []
    assert rules(findings(bare, bases={"r": MfuBasis(7.8e10, 312)})) == [("mfu_inconsistent", ("MFU",))]


def test_a_row_without_its_record(record: Record) -> None:
    found = findings(with_(record, id="another"))
    assert rules(found) == [("record", ())]
    assert found[0].in_data


def test_measured_rows_are_checked_without_literals(make_record: MakeRecord) -> None:
    record = make_record(id="r", memory=Memory(peak_device_gib=81, capacity_gib=80), mfu=Mfu(palm=1.2))
    columns = (*COLUMNS, ValueColumn(shows="mfu_palm", title="MFU(PaLM)"))
    table = PerformanceTable(columns=columns, rows=(Row(record="r"),))
    report = Report(id="s", case="c", vendor="v", title=WHY, blocks=(table,))
    found = check(report, {"r": record})
    assert rules(found) == [("memory", ("mem",)), ("mfu_over_peak", ("MFU(PaLM)",))]
