"""The report of one run's folder: its measured sheet and the plots of its curves."""

from __future__ import annotations

from pathlib import Path

from core.report.measured import measured_report
from core.report.plots import ALIGNMENT_PLOT, curves, write_plots
from core.report.render import render_report
from schemas.base import Text
from schemas.record import Record
from schemas.report import Language

_CURVES = Text(zh="曲线", en="Curves")
_NO_STEPS = Text(zh="没有记录到任何一步，因此没有曲线。", en="No step was recorded, so there are no curves.")
_NO_MATPLOTLIB = Text(
    zh="没有安装 matplotlib，因此没有画曲线；安装后运行 `python -m core report RUN_DIR` 即可补画。",
    en="matplotlib is not installed, so no curves were drawn; install it and run `python -m core report RUN_DIR`.",
)


def write_run_report(run_dir: Path, record: Record, language: Language = "zh") -> Path:
    """Write ``report.md`` and the plots of ``record`` into ``run_dir``, replacing older ones; the sheet's path.

    UsageError for a record without a plan (a published one). Without matplotlib the sheet says so.
    """
    sheet = render_report(measured_report([record]), {record.id: record}, language)
    title = f"### {_CURVES.in_language(language)}"
    path = run_dir / "report.md"
    path.write_text(
        "\n\n".join([sheet.strip("\n"), title, _curve_text(run_dir, record, language)]) + "\n", encoding="utf-8"
    )
    return path


def _curve_text(run_dir: Path, record: Record, language: Language) -> str:
    if not curves(record):
        return _NO_STEPS.in_language(language)
    try:
        names = write_plots(run_dir, record)
    except ImportError:
        return _NO_MATPLOTLIB.in_language(language)
    if record.alignment is not None and (run_dir / ALIGNMENT_PLOT).is_file():
        names.append(ALIGNMENT_PLOT)
    return "\n\n".join(f"![{Path(name).stem}]({name})" for name in names)
