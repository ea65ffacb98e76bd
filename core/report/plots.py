"""Curves of one run as SVG files. matplotlib is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.report.cells import used_memory_gib
from core.report.say import significant
from schemas.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALIGNMENT_PLOT = "alignment.svg"
"""What ``align`` leaves in a run's folder."""

_SVG_SETTINGS = {"svg.hashsalt": "accelmark", "svg.fonttype": "path"}
"""A fixed salt for the ids, and glyphs as outlines: the same record gives the same bytes."""


class Curve(NamedTuple):
    """One value per optimizer step, and how to draw it."""

    name: str
    """File name without ``.svg``."""
    values: Sequence[float]
    axis: str
    """Axis label with the unit."""
    level: float | None
    """The number that the report prints for this curve, drawn as a line."""
    level_label: str
    from_zero: bool


def curves(record: Record) -> list[Curve]:
    """The curves that the record holds values for: loss, throughput, memory."""
    throughput = record.throughput
    used = used_memory_gib(record)
    headline = None if throughput is None else throughput.tokens_per_second_per_chip
    found = [
        Curve("loss", record.loss.curve, "loss (nats per label token)", None, "", from_zero=False),
        Curve(
            "throughput",
            _tokens_per_second_per_chip(record),
            "throughput (token/s per chip)",
            headline,
            "" if headline is None else f"mean of the window: {significant(headline)}",
            from_zero=True,
        ),
        Curve(
            "memory",
            record.loss.memory_allocated_curve_gib,
            "allocated after the step (GiB)",
            used,
            "" if used is None else f"mem of the table: {significant(used, 'GiB')}",
            from_zero=True,
        ),
    ]
    return [curve for curve in found if curve.values]


def draw(curve: Curve, record: Record) -> Figure:
    """The curve over the optimizer steps, warm-up shaded. ImportError without matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    begin = record.loss.first_step
    steps = range(begin, begin + len(curve.values))
    axes.plot(steps, curve.values, color="#1f5fa8", linewidth=1.4, marker=".", markersize=4, zorder=3)
    if curve.level is not None:
        axes.axhline(curve.level, color="#c05020", linewidth=1.0, linestyle="--", label=curve.level_label)
    warmup = record.plan.measure.warmup_steps if record.plan else 0
    if warmup:
        axes.axvspan(begin - 0.5, begin + warmup - 0.5, color="#d9d9d9", alpha=0.6, linewidth=0, label="warm-up")
    axes.set_xlim(begin - 0.5, begin + len(curve.values) - 0.5)
    if curve.from_zero:
        axes.set_ylim(0, 1.15 * max(*curve.values, curve.level or 0.0) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(curve.axis)
    axes.set_title(f"{record.case}, {record.topology}, run {record.run}", fontsize=10)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8, frameon=True)
    return figure


def write_plots(run_dir: Path, record: Record) -> list[str]:
    """Write ``<curve>.svg`` for every curve into ``run_dir``; their file names.

    ImportError without matplotlib.
    """
    written = []
    for curve in curves(record):
        save_svg(draw(curve, record), run_dir / f"{curve.name}.svg")
        written.append(f"{curve.name}.svg")
    return written


def save_svg(figure: Figure, path: Path) -> None:
    """Write ``figure``; the same figure gives the same bytes."""
    import matplotlib

    with matplotlib.rc_context(_SVG_SETTINGS):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _tokens_per_second_per_chip(record: Record) -> list[float]:
    """Tokens of a step over its time and the chips; empty without a plan or step times."""
    if record.plan is None:
        return []
    tokens = record.plan.tokens_per_step / record.topology.world_size
    return [tokens / seconds if seconds > 0 else 0.0 for seconds in record.loss.step_time_curve_s]
