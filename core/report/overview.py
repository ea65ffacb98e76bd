"""The table at the top of a case's README: every result that may be compared, whoever measured it."""

from __future__ import annotations

from collections.abc import Sequence

from core.report.cells import render_value
from core.report.say import verbatim
from schemas.base import Text
from schemas.record import Record
from schemas.report import Cell, Phrase, Table, ValueColumn

_CAPTION = Text(
    zh="正式运行的结果，同一拓扑内按吞吐量排列，不含缩小的模型与模拟设备。优化器状态不同的行不可直接比较；bf16者更新时随机舍入。",
    en="Official runs, the fastest of a topology first, without scaled-down and emulated ones. "
    "Compare rows of the same optimizer state only; one in bf16 is rounded stochastically.",
)
_COLUMNS = (
    Text(zh="拓扑", en="Topology"),
    "run",
    Text(zh="来源", en="Source"),
    "engine",
    "precision",
    Text(zh="优化器状态", en="Optimizer state"),
    "token/p/s",
    "MFU",
    "MFU(PaLM)",
)
_SOURCES = {"published": Text(zh="已发布", en="published"), "measured": Text(zh="实测", en="measured")}
_NUMBERS = tuple(
    ValueColumn(shows=shows, title=shows) for shows in ("tokens_per_second_per_chip", "mfu", "mfu_palm")
)


def overview(records: Sequence[Record]) -> Table | None:
    """A row for each rankable record with a rate, by topology and then by rate; None where there is none."""
    rates = {r.id: r.throughput.tokens_per_second_per_chip for r in records if r.rankable and r.throughput}
    shown = [record for record in records if record.id in rates]
    shown.sort(key=lambda record: (record.topology.render(), -rates[record.id], record.id))
    return Table(caption=_CAPTION, columns=_COLUMNS, rows=tuple(map(_row, shown))) if shown else None


def _row(record: Record) -> tuple[Phrase, ...]:
    plan = record.plan
    state = "/" if plan is None else plan.hyper_parameters.optimizer_state.removesuffix("_stochastic")
    facts = (record.topology.render(), record.run)
    numbers = (render_value(column, Cell(), record, "en") or "/" for column in _NUMBERS)
    return (
        *map(verbatim, facts),
        _SOURCES[record.source],
        *map(verbatim, (record.engine, record.precision, state)),
        *numbers,
    )
