"""``align``: holds a run's curves against a reference curve, or makes one of them. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from core.align.judge import judge
from core.align.references import find_reference, make_reference, write_reference
from core.cli import new_console, print_json
from core.errors import ThresholdError, UsageError
from core.record import ALIGNMENT_FILE, RECORD_FILE, build_record, read_record, write_record
from core.report.say import share
from core.worker import PLAN_FILE
from schemas.record import Alignment, Record
from schemas.reference import ReferenceCurve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``align``."""
    parser.add_argument(
        "run", metavar="RUN", type=Path,
        help="a run's folder, whose record and report get the verdict, or a record file, which is only judged",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--reference", metavar="CURVE", help="a reference file, or the name of one that lives with the run's case"
    )
    what.add_argument("--make-reference", metavar="NAME", help="keep the run's curves as a reference of its case")
    parser.add_argument("--json", action="store_true", help="the verdict as one object on stdout")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Judge, or make a reference; ThresholdError (exit code 4) where the run is not aligned."""
    record, run_dir = _read(arguments.run)
    if arguments.make_reference is not None:
        file = write_reference(make_reference(record, arguments.make_reference), record)
        if arguments.json:
            print_json({"reference": str(file)})
        else:
            print(file)
        return 0
    reference = find_reference(arguments.reference, record)
    alignment = judge(record, reference)
    if run_dir is not None:
        _keep(run_dir, record, reference, alignment, console)
    if arguments.json:
        verdict = {"record": record.id, "aligned": alignment.aligned}
        print_json(verdict | {"alignment": alignment.model_dump(mode="json")})
    else:
        _show(record, alignment)
    if not alignment.aligned:
        raise _not_aligned(record, alignment)
    return 0


def _read(path: Path) -> tuple[Record, Path | None]:
    """The record, and the run's folder where ``path`` is one or a record in one."""
    folder = path if path.is_dir() else path.parent
    if (folder / PLAN_FILE).is_file() and (path.is_dir() or path.name == RECORD_FILE):
        run_dir = folder.absolute()
        return build_record(run_dir), run_dir
    file = path / RECORD_FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path} is no run folder and no record", "give the folder of a run, or its record.json")
    return read_record(file), None


def _keep(
    run_dir: Path, record: Record, reference: ReferenceCurve, alignment: Alignment, console: Console
) -> None:
    """Leave verdict and plot in the run's folder, and build its record and report anew."""
    from core.align.plot import write_plot
    from core.report.run_report import write_run_report

    (run_dir / ALIGNMENT_FILE).write_text(alignment.model_dump_json(indent=2) + "\n", encoding="utf-8")
    try:
        write_plot(run_dir, record, reference, alignment)
    except ImportError:
        console.print("matplotlib is not installed, so no plot was drawn")
    write_run_report(run_dir, write_record(run_dir))


def _show(record: Record, alignment: Alignment) -> None:
    from rich.table import Table

    title = f"{record.id} and {alignment.reference}"
    table = Table("relative error of", "steps", "mean", "tolerance", "", title=title)
    for condition in alignment.conditions:
        first, last = condition.first_step, condition.last_step
        steps = str(first) if first == last else f"{first}-{last}"
        verdict = "ok" if condition.holds else "over"
        table.add_row(condition.name, steps, share(condition.error), share(condition.tolerance), verdict)
    console = new_console()
    console.print(table)
    for name, values in alignment.recipe_differences.items():
        console.print(f"another recipe: {name} {values}")
    if alignment.aligned:
        console.print(f"aligned with {alignment.reference} over {alignment.steps} steps")


def _not_aligned(record: Record, alignment: Alignment) -> ThresholdError:
    over = ", ".join(
        f"{condition.name} is off by {share(condition.error)} (tolerance {share(condition.tolerance)})"
        for condition in alignment.conditions
        if not condition.holds
    )
    fix = "docs/alignment.md tells what each condition catches"
    if alignment.recipe_differences:
        fix = f"run with the reference's {', '.join(alignment.recipe_differences)}; {fix}"
    return ThresholdError(f"{record.id} is not aligned with {alignment.reference}: {over}", fix)
