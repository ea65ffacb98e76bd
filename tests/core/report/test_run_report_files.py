from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UsageError
from core.report.plots import curves
from core.report.run_report import write_run_report
from schemas.record import Loss, Record

MakeRecord = Callable[..., Record]
ROOT = Path(__file__).parents[3]


def test_the_folder_holds_a_sheet_and_a_plot_per_curve(tmp_path: Path, make_record: MakeRecord) -> None:
    pytest.importorskip("matplotlib")
    path = write_run_report(tmp_path, make_record(), "en")
    assert path == tmp_path / "report.md"
    text = path.read_text(encoding="utf-8")
    assert "### acme X1x1x4: configuration and run reference" in text
    for name in ("loss", "throughput", "memory"):
        assert f"![{name}]({name}.svg)" in text
        assert ET.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def test_plots_are_the_same_bytes_every_time(tmp_path: Path, make_record: MakeRecord) -> None:
    pytest.importorskip("matplotlib")
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_run_report(folder, make_record())
    for name in ("loss.svg", "throughput.svg", "memory.svg"):
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes()
        assert b"<dc:date>" not in first


def test_axes_carry_units_and_the_warm_up_is_shaded(make_record: MakeRecord) -> None:
    pytest.importorskip("matplotlib")
    import numpy

    from core.report.plots import draw

    record = make_record()
    labels = []
    for curve in curves(record):
        (axes,) = draw(curve, record).axes
        labels.append(axes.get_ylabel())
        assert axes.get_xlabel() == "optimizer step"
        assert "warm-up" in axes.get_legend_handles_labels()[1]
        assert numpy.asarray(axes.lines[0].get_xydata()).tolist() == [
            [step, y] for step, y in enumerate(curve.values, 1)
        ]
    assert labels == [
        "loss (nats per label token)", "throughput (token/s per chip)", "allocated after the step (GiB)",
    ]  # fmt: skip


def test_curves_of_a_run_that_went_on_begin_where_the_checkpoint_ended(make_record: MakeRecord) -> None:
    pytest.importorskip("matplotlib")
    import numpy

    from core.report.plots import draw

    whole = make_record()
    record = whole.model_copy(update={"loss": whole.loss.model_copy(update={"first_step": 46})})
    (axes,) = draw(curves(record)[0], record).axes
    assert numpy.asarray(axes.lines[0].get_xydata())[0].tolist() == [46, record.loss.curve[0]]
    assert axes.get_xlim() == (45.5, 45.5 + len(record.loss.curve))


def test_throughput_of_a_step_is_its_tokens_over_time_and_chips(make_record: MakeRecord) -> None:
    (loss, throughput, memory) = curves(make_record())
    assert throughput.values[0] == pytest.approx(8 * 4096 / 2.0 / 4)
    assert throughput.level == 12431.6
    assert memory.level == 68.21
    assert loss.level is None


def test_a_run_that_left_no_step_has_no_plots(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(status="crashed", reason="lost", loss=Loss(), throughput=None)
    text = write_run_report(tmp_path, record, "en").read_text(encoding="utf-8")
    assert "No step was recorded" in text
    assert "crashed: lost" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_an_unmeasured_curve_is_left_out(tmp_path: Path, make_record: MakeRecord) -> None:
    pytest.importorskip("matplotlib")
    write_run_report(tmp_path, make_record(loss=Loss(last=1.0, curve=(2.0, 1.0)), throughput=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.svg", "report.md"]


def test_without_matplotlib_the_report_says_so(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_run_report(tmp_path, make_record(), "en").read_text(encoding="utf-8")
    assert "matplotlib is not installed" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_a_published_record_has_no_run_report(tmp_path: Path, make_record: MakeRecord) -> None:
    published = make_record(source="published").model_copy(update={"plan": None})
    with pytest.raises(UsageError, match="has no plan"):
        write_run_report(tmp_path, published)


def test_reports_need_neither_torch_nor_matplotlib_to_be_imported() -> None:
    code = "import sys, core.report; print(sorted({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
