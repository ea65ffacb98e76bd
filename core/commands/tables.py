"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from core.console import table_of
from core.settings import OPTIONAL_SECTIONS, RUN_SECTIONS
from core.settings import SECTIONS as PLAN_SECTIONS
from schemas.evaluation import EMBEDDED, Accuracy
from schemas.plan import Placement, Plan
from schemas.record import Record
from schemas.units import Percent

SECTIONS = (
    ("", "hyper_parameters"),
    *((f"{name}.", name) for name in (*PLAN_SECTIONS, *OPTIONAL_SECTIONS, *RUN_SECTIONS)),
)


def records_table(records: Sequence[Record]) -> Table:
    """One column a run: what was measured, or why it was not. Narrow terminals hold it, too."""
    runs = [record.run for record in records]
    table = table_of("", *runs, whole=1, title=f"{records[0].case} {records[0].topology}")
    return _filled(table, result_rows(records))


def compared_table(what: str, records: Sequence[Record], rows: Mapping[str, Sequence[str]]) -> Table:
    """``rows`` of any records, one column each, as they were named; ``what`` heads the names of the rows."""
    table = table_of(what, *(f"{record.topology} {record.run}" for record in records), whole=1)
    return _filled(table, rows)


def _filled(table: Table, rows: Mapping[str, Sequence[str]]) -> Table:
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def result_rows(records: Sequence[Record]) -> dict[str, list[str]]:
    """What was measured, by name: a cell of each record."""
    rows: dict[str, Callable[[Record], str]] = {
        "status": lambda r: r.status if r.reason is None else f"{r.status}: {r.reason}",
        "token/p/s": lambda r: "/" if r.throughput is None else f"{r.throughput.tokens_per_second_per_chip:,.1f}",
        "loss": lambda r: "/" if r.loss.last is None else f"{r.loss.last:.4f}",
        "mem GiB": memory_cell,
        "MFU": lambda r: percent_cell(r.mfu.flagperf),
        "MFU(PaLM)": lambda r: percent_cell(r.mfu.palm),
        "stamps": lambda r: ", ".join(stamps(r)) or "-",
        "record": lambda r: r.id,
    }
    told = {name: [cell(record) for record in records] for name, cell in rows.items()}
    for name in sorted({name for record in records for name in record.accuracy}):
        told[f"acc({name})"] = [accuracy_cell(record.accuracy.get(name)) for record in records]
    return told


def settings_of(plan: Plan) -> dict[str, str]:
    """Every setting by its name on the command line."""
    told: dict[str, str] = {}
    for prefix, attribute in SECTIONS:
        section = getattr(plan, attribute)
        for name, value in section.model_dump(mode="json").items() if section is not None else ():
            if not isinstance(value, dict):
                told[prefix + name] = str(value)
    return told | {"weights": str(plan.weights)}


def memory_cell(record: Record) -> str:
    """Used and capacity, as far as known."""
    memory = record.memory
    used = memory.peak_device_gib or memory.peak_reserved_gib or memory.peak_allocated_gib
    if used is None:
        return "/"
    return f"{used:.1f}" + ("" if memory.capacity_gib is None else f"/{memory.capacity_gib:.1f}")


def accuracy_cell(accuracy: Accuracy | None) -> str:
    """The share of right answers with its standard error, and whether the questions were the embedded ones."""
    if accuracy is None:
        return "/"
    error = "" if accuracy.standard_error is None else f" ± {accuracy.standard_error:.3f}"
    return f"{accuracy.value:.3f}{error}" + (" (embedded questions)" if accuracy.data == EMBEDDED else "")


def percent_cell(fraction: float | None) -> str:
    """A share, or ``/`` where there is none."""
    return "/" if fraction is None else Percent.of_fraction(fraction).render()


def stamps(record: Record) -> list[str]:
    """What keeps a row out of rankings, and what its loss means."""
    found = [name for name in ("scaled_down", "emulated") if getattr(record, name)]
    if not record.official:
        found.append("unofficial")
    if record.weights == "random":
        found.append("random weights")
    if record.data == "generated":
        found.append("generated data")
    return found


def plan_table(plan: Plan) -> Table:
    """Every resolved value with the layer that set it."""
    title = f"{plan.case} {plan.config} run {plan.run}: vendor {plan.vendor}, engine {plan.engine}"
    table = table_of("setting", "value", "from", whole=1, title=title)
    table.add_row("engine", plan.engine, plan.origins["engine"])
    for name, value in settings_of(plan).items():
        table.add_row(name, value, plan.origins.get(name, ""))
    table.add_section()
    derived: dict[str, object] = {
        "parallel": plan.parallel,
        "global batch size": plan.global_batch_size,
        "tokens per step": plan.tokens_per_step,
        "matrix products in": plan.compute_precision,
        "scaled down": plan.scaled_down,
        "official": plan.official if plan.unofficial_reason is None else f"False: {plan.unofficial_reason}",
        "fix_hp": plan.fix_hp or "/",
        "engine config": plan.engine_config or "-",
    }
    for name, derived_value in derived.items():
        table.add_row(name, str(derived_value), "derived")
    return table


def placement_table(placement: Placement) -> Table:
    """Every rank's place and what it holds."""
    table = Table("rank", "TP", "PP", "DP", "layers", "parameters", title="placement")
    for place in placement.ranks:
        layers = ", ".join(f"{first}-{last}" for first, last in place.layers)
        numbers = (place.rank, place.tensor, place.pipeline, place.data)
        table.add_row(*map(str, numbers), layers, f"{place.parameters:,}")
    return table


def bubble_line(placement: Placement) -> str:
    """What the pipeline costs, and by which formula."""
    return f"pipeline bubble: {Percent.of_fraction(placement.bubble_fraction)}, {placement.bubble_source}"
