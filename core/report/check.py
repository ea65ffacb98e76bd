"""Holds a sheet against its records: literals that do not follow from them, and cells that cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Literal, NamedTuple

from pydantic import PositiveInt

from core.report.cells import NUMBER, percent, render_value, used_memory_gib
from schemas.base import RecordId, Schema, Text
from schemas.record import Record
from schemas.report import Cell, Column, PerformanceTable, Report, ValueColumn, in_language

Rule = Literal[
    "record", "literal", "missing", "needless",
    "notation", "swapped", "memory", "mfu_over_peak", "mfu_inconsistent",
]  # fmt: skip
_OF_THE_DATA: tuple[Rule, ...] = ("record", "literal", "missing", "needless")


class Finding(Schema):
    """One thing that is wrong with cells of one row."""

    rule: Rule
    record: RecordId
    row: PositiveInt
    """Counted from 1 within its table."""
    columns: tuple[str, ...]
    """Chinese titles of the columns that it is about."""
    message: Text

    @property
    def in_data(self) -> bool:
        """True for a mistake in our data files; False for one that the sheet's numbers carry themselves."""
        return self.rule in _OF_THE_DATA


class MfuBasis(NamedTuple):
    """What ties a throughput to an MFU: MFU = token/p/s × FLOPs a token / peak."""

    flops_per_token: float
    peak_tflops: float


class _Spot(NamedTuple):
    """One cell, with where it stands."""

    column: Column
    cell: Cell
    record: Record
    row: int

    @property
    def title(self) -> str:
        return in_language(self.column.title, "zh")

    def finding(self, rule: Rule, zh: str, en: str) -> Finding:
        place_zh, place_en = f"第{self.row}行 {self.title} 格", f"row {self.row}, column {self.title_en}"
        message = Text(zh=f"{place_zh}：{zh}", en=f"{place_en}: {en}")
        return Finding(rule=rule, record=self.record.id, row=self.row, columns=(self.title,), message=message)

    @property
    def title_en(self) -> str:
        return in_language(self.column.title, "en")


def check(
    report: Report, records: Mapping[str, Record], bases: Mapping[str, MfuBasis] | None = None
) -> list[Finding]:
    """Everything wrong with the report's performance tables, in reading order.

    ``records`` maps ids to records. ``bases`` gives FLOPs a token and peak by record id, where the caller knows
    them better than the record's own ``mfu`` fields.
    """
    return [finding for table in report.tables for finding in _check_table(table, records, bases or {})]


def _check_table(
    table: PerformanceTable, records: Mapping[str, Record], bases: Mapping[str, MfuBasis]
) -> Iterator[Finding]:
    for number, row in enumerate(table.rows, start=1):
        record = records.get(row.record)
        if record is None:
            message = Text(zh=f"第{number}行：没有记录 {row.record}", en=f"row {number}: no record {row.record}")
            yield Finding(rule="record", record=row.record, row=number, columns=(), message=message)
            continue
        spots = [_Spot(column, cell, record, number) for column, cell in table.cells(row)]
        for spot in spots:
            yield from _check_literal(spot)
        yield from _check_notations(spots)
        for spot in spots:
            yield from _check_memory(spot)
            yield from _check_mfu(spot, bases.get(record.id))


def _check_literal(spot: _Spot) -> Iterator[Finding]:
    """The record's value must render to the published literal, unless a reason says why it does not."""
    if spot.cell.published is None:
        return
    rendered = render_value(spot.column, spot.cell, spot.record, "zh")
    literal = spot.cell.published
    if spot.cell.missing is not None:
        if rendered is not None:
            yield spot.finding(
                "missing", f"原表未给出，记录却有 {rendered}", f"missing, but the record has {rendered}"
            )
    elif spot.cell.as_published is not None:
        if rendered == literal:
            yield spot.finding(
                "needless",
                f"记录可还原为 {literal}，不需要 as_published",
                f"the record renders to {literal}, so as_published is needless",
            )
    elif rendered != literal:
        yield spot.finding(
            "literal",
            f"原表为 {literal}，由记录得到 {rendered}",
            f"published as {literal}, the record renders to {rendered}",
        )


_NOTATIONS: dict[str, Text] = {
    "number": Text(zh="数值", en="a number"),
    "memory": Text(zh="存储（已用/容量）", en="a memory value (used/capacity)"),
    "percent": Text(zh="百分数", en="a percentage"),
    "other": Text(zh="其他内容", en="something else"),
}
_EXPECTED = {
    "tokens_per_second_per_chip": "number",
    "loss": "number",
    "accuracy": "number",
    "memory": "memory",
    "mfu": "percent",
    "mfu_palm": "percent",
}


def _notation(literal: str) -> str:
    if NUMBER.fullmatch(literal):
        return "number"
    if re.fullmatch(rf"{NUMBER.pattern}/{NUMBER.pattern}", literal):
        return "memory"
    return "percent" if re.fullmatch(rf"{NUMBER.pattern}%", literal) else "other"


def _check_notations(spots: list[_Spot]) -> Iterator[Finding]:
    """Cells whose literal cannot be what the column shows; two that fit each other's column are swapped."""
    misfits = [
        (spot, _notation(spot.cell.literal))
        for spot in spots
        if spot.cell.literal is not None
        and _notation(spot.cell.literal) != _EXPECTED.get(spot.column.shows, _notation(spot.cell.literal))
    ]
    explained: set[str] = set()
    for (left, left_is), (right, right_is) in combinations(misfits, 2):
        fits = left_is == _EXPECTED[right.column.shows] and right_is == _EXPECTED[left.column.shows]
        if fits and not explained & {left.title, right.title}:
            explained |= {left.title, right.title}
            yield _swapped(left, right)
    for spot, found in misfits:
        if spot.title not in explained:
            expected = _NOTATIONS[_EXPECTED[spot.column.shows]]
            yield spot.finding(
                "notation",
                f"印的是{_NOTATIONS[found].zh} {spot.cell.literal}，应为{expected.zh}",
                f"{spot.cell.literal} is {_NOTATIONS[found].en}, not {expected.en}",
            )


def _swapped(left: _Spot, right: _Spot) -> Finding:
    """Names both cells, and what the record holds: each value read with the other cell's digits."""
    held = [
        render_value(one.column, other.cell.model_copy(update={"as_published": None}), one.record, "zh")
        for one, other in ((left, right), (right, left))
    ]
    a, b = left.title, right.title
    message = Text(
        zh=f"第{left.row}行：{a} 与 {b} 两格互换：{a} 格印的是 {left.cell.literal}，{b} 格印的是 "
        f"{right.cell.literal}；记录取 {a} = {held[0]}，{b} = {held[1]}",
        en=f"row {left.row}: the cells {left.title_en} and {right.title_en} are swapped: "
        f"{left.title_en} is printed as {left.cell.literal}, {right.title_en} as {right.cell.literal}; "
        f"the record holds {left.title_en} = {held[0]}, {right.title_en} = {held[1]}",
    )
    return Finding(rule="swapped", record=left.record.id, row=left.row, columns=(a, b), message=message)


def _check_memory(spot: _Spot) -> Iterator[Finding]:
    used, capacity = used_memory_gib(spot.record), spot.record.memory.capacity_gib
    if spot.column.shows == "memory" and used is not None and capacity is not None and used > capacity:
        yield spot.finding(
            "memory",
            f"已用 {used} GiB，超过容量 {capacity} GiB",
            f"{used} GiB used of a capacity of {capacity} GiB",
        )


_MFU: dict[str, tuple[str, Callable[[Record], float | None]]] = {
    "mfu": ("flagperf", lambda record: record.mfu.flagperf),
    "mfu_palm": ("palm", lambda record: record.mfu.palm),
}


def _check_mfu(spot: _Spot, basis: MfuBasis | None) -> Iterator[Finding]:
    """An MFU over 100%, or one that does not follow from the throughput of its row."""
    if not isinstance(spot.column, ValueColumn) or spot.column.shows not in _MFU:
        return
    rule, read = _MFU[spot.column.shows]
    mfu, literal = read(spot.record), spot.cell.literal
    if mfu is None:
        return
    if mfu > 1:
        yield spot.finding("mfu_over_peak", f"{percent(mfu)} 超过 100%", f"{percent(mfu)} is over 100%")
    throughput = spot.record.throughput
    basis = (basis if rule == "flagperf" else None) or _own_basis(spot.record, rule)
    if basis is None or throughput is None:
        return
    tokens = throughput.tokens_per_second_per_chip
    expected = tokens * basis.flops_per_token / (basis.peak_tflops * 1e12)
    if percent(mfu, literal) != percent(expected, literal):
        sum_text = f"{tokens:g} × {basis.flops_per_token:g} / {basis.peak_tflops:g}e12"
        yield spot.finding(
            "mfu_inconsistent",
            f"{percent(mfu, literal)} 与吞吐量不符：{sum_text} = {percent(expected, literal)}",
            f"{percent(mfu, literal)} does not follow from the throughput: "
            f"{sum_text} = {percent(expected, literal)}",
        )


def _own_basis(record: Record, rule: str) -> MfuBasis | None:
    flops, peak = record.mfu.flops_per_token.get(rule), record.mfu.peak_tflops
    return None if flops is None or peak is None else MfuBasis(flops, peak)
