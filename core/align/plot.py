"""The run's curves over the reference's, and their relative errors, as one SVG. matplotlib is imported lazily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.align.judge import relative_errors
from core.report.plots import ALIGNMENT_PLOT, save_svg
from schemas.record import Alignment, AlignmentCondition, Record
from schemas.reference import ReferenceCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RUN, _REFERENCE, _LIMIT, _MEAN = "#1f5fa8", "#b0b0b0", "#c05020", "#2a8a4a"
_SMALLEST = 1e-9
"""Drawn for errors of 0, which a logarithmic axis has no place for."""


def draw(record: Record, reference: ReferenceCurve, alignment: Alignment) -> Figure:
    """Losses and gradient norms above, relative errors below, with each condition's error and tolerance.

    ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    columns = figure.subplots(2, 2, sharex=True).T
    curves = (
        ("loss (nats per label token)", record.loss.curve, reference.losses),
        ("gradient norm", record.loss.grad_norm_curve, reference.gradient_norms),
    )
    for (upper, lower), (label, own, other), about in zip(columns, curves, ("loss", "norm"), strict=True):
        _curves(upper, own, other, reference.id)
        upper.set_ylabel(label)
        conditions = [condition for condition in alignment.conditions if condition.name.endswith(about)]
        _errors(lower, relative_errors(own, other), conditions)
    verdict = "aligned" if alignment.aligned else "not aligned"
    figure.suptitle(
        f"{record.case}, {record.topology}, run {record.run}: {verdict} with {reference.id}", fontsize=11
    )
    return figure


def write_plot(run_dir: Path, record: Record, reference: ReferenceCurve, alignment: Alignment) -> Path:
    """Write ``alignment.svg`` into ``run_dir``. ImportError without matplotlib."""
    path = run_dir / ALIGNMENT_PLOT
    save_svg(draw(record, reference, alignment), path)
    return path


def _curves(axes: Axes, own: Sequence[float], other: Sequence[float], name: str) -> None:
    steps = range(1, len(other) + 1)
    axes.plot(steps, other, color=_REFERENCE, linewidth=3.0, label=f"reference {name}")
    axes.plot(steps, own[: len(other)], color=_RUN, linewidth=1.2, label="run")
    _finish(axes)


def _errors(axes: Axes, errors: Sequence[float], conditions: Sequence[AlignmentCondition]) -> None:
    drawn = [max(error, _SMALLEST) for error in errors]
    axes.plot(range(1, len(errors) + 1), drawn, color=_RUN, linewidth=0.9, marker=".", markersize=3)
    for number, condition in enumerate(conditions):
        # Half a step wider on both sides: one step alone would be a point.
        steps = (condition.first_step - 0.5, condition.last_step + 0.5)
        for level, color, label in (
            (condition.tolerance, _LIMIT, "tolerance"),
            (max(condition.error, _SMALLEST), _MEAN, "mean over these steps"),
        ):
            axes.plot(steps, (level, level), color=color, linewidth=2.0, label=None if number else label)
    axes.set_yscale("log")
    axes.set_ylabel("relative error")
    axes.set_xlabel("optimizer step")
    _finish(axes)


def _finish(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.legend(loc="best", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
