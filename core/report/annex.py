"""The annex (附表) of a case's README: MFU with and without fused attention and checkpointing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from core.report.cells import percent
from schemas.base import Text
from schemas.plan import Plan
from schemas.record import Record
from schemas.report import Phrase, Table

Setup = Literal["normal", "eager", "eager_checkpointing"]

_CAPTION = Text(
    zh="附表：各类实验MFU对比（每格取该配置下最快的一次正式运行；`/` 表示没有测量）",
    en="Annex: MFU of several setups (each cell is the fastest official run of that setup; `/` was not measured)",
)
_COLUMNS: Mapping[Setup, Text] = {
    "normal": Text(zh="正常配置", en="Normal setup"),
    "eager": Text(zh="不开启flashattention", en="Without flash attention"),
    "eager_checkpointing": Text(
        zh="不开启flashattention且开启gradient checkpointing",
        en="Without flash attention, with gradient checkpointing",
    ),
}


def setup_of(plan: Plan) -> Setup | None:
    """Which column a pretraining run belongs to, by its attention and checkpointing; None for other runs."""
    hp = plan.hyper_parameters
    if plan.lora is not None or plan.vision is not None or hp.precision == "fp8":  # a share of another peak
        return None
    if hp.attention != "eager":
        return "normal"
    columns: Mapping[str, Setup] = {"none": "eager", "full": "eager_checkpointing"}
    return columns.get(hp.activation_checkpointing)


def annex(records: Sequence[Record]) -> Table | None:
    """A row per topology that ran without fused attention, too; None where none did.

    Stamped runs (scaled down, emulated, unofficial) do not count; of runs that failed, how they did is shown.
    """
    rows: dict[str, dict[Setup, list[Record]]] = {}
    for record in records:
        if record.plan is None or record.scaled_down or record.emulated or not record.official:
            continue
        if (setup := setup_of(record.plan)) is not None:
            rows.setdefault(f"{record.topology}+{record.case}", {}).setdefault(setup, []).append(record)
    shown = [(name, cells) for name, cells in sorted(rows.items()) if cells.keys() - {"normal"}]
    if not shown:
        return None
    return Table(
        caption=_CAPTION,
        columns=(Text(zh="机器+模型", en="Machine + model"), *_COLUMNS.values()),
        rows=tuple((name, *(_cell(cells.get(setup, [])) for setup in _COLUMNS)) for name, cells in shown),
    )


def _cell(records: Sequence[Record]) -> Phrase:
    best = max((record.mfu.flagperf or 0.0 for record in records if record.status == "ok"), default=0.0)
    if best > 0:
        return percent(best) or "/"
    return next((record.status for record in records if record.status != "ok"), "/")
