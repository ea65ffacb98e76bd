"""The plot of a comparison: both curves, and each condition over its steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from core.align.judge import judge
from core.align.plot import draw, write_plot
from schemas.record import Record
from schemas.reference import ReferenceCurve
from tests.core.align.conftest import LOSSES, NORMS, STEPS

MakeRecord = Callable[..., Record]


def test_curves_errors_and_tolerances_are_drawn(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    record = make_record(None, (*(loss * 1.03 for loss in LOSSES), 9.0), (*NORMS, 9.0))
    alignment = judge(record, reference)
    figure = draw(record, reference, alignment)
    losses, norms, loss_errors, norm_errors = figure.axes
    assert [tuple(line.get_ydata()) for line in losses.lines] == [LOSSES, record.loss.curve[:STEPS]]
    assert [len(line.get_ydata()) for line in norms.lines] == [STEPS, STEPS]
    assert loss_errors.lines[0].get_ydata()[0] == pytest.approx(0.03)
    levels = {(tuple(line.get_xdata()), line.get_ydata()[0]) for line in norm_errors.lines[1:]}
    assert ((0.5, STEPS + 0.5), 0.05) in levels
    assert ((0.5, 5.5), 1e-5) in levels
    assert figure.get_suptitle() == "toy, X1x1x1, run base: not aligned with curve"


def test_the_same_comparison_gives_the_same_bytes(
    make_record: MakeRecord, reference: ReferenceCurve, tmp_path: Path
) -> None:
    record = make_record()
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written.append(write_plot(tmp_path / name, record, reference, judge(record, reference)).read_bytes())
    assert written[0] == written[1]
