"""``conform``: holds a vendor's plugin to what its hooks promise, on this machine. Imports no torch itself."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from core import plugins
from core.cli import new_console, print_json
from core.console import table_of
from core.errors import ThresholdError
from core.folders import new_folder
from core.testing.catalog import check_called
from core.testing.conformance import Conformance
from schemas.conformance import ConformanceReport

REPORT_FILE = "conformance.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``conform``."""
    parser.add_argument(
        "vendor", metavar="VENDOR[@DIST]", help="vendor plugin, and its distribution if two have it"
    )
    parser.add_argument(
        "--only", metavar="CHECK", action="append", default=[],
        help="run this check and those that it needs (default: all of them); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR",
        help=f"where the folder with {REPORT_FILE}, logs and runs goes (default: runs)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the report as one object on stdout")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Run the checks and show them; ThresholdError (exit code 4) where one failed."""
    for check_id in arguments.only:
        check_called(check_id)
    vendor = plugins.select(arguments.vendor)
    folder = new_folder(arguments.out, f"conform-{vendor.name}")
    conformance = Conformance(vendor, folder, arguments.only)
    done = 0
    for result in conformance.results():
        if result.id in conformance.wanted:
            done += 1
            console.print(f"{done}/{len(conformance.wanted)} {result.id}: {result.verdict}", soft_wrap=True)
    report = conformance.report()
    file = folder / REPORT_FILE
    file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    console.print(f"report: {file}", soft_wrap=True)
    if arguments.json:
        print_json(report.model_dump(mode="json"))
    else:
        stdout = new_console()
        stdout.print(table(report, conformance.wanted))
        stdout.print(summary(report), soft_wrap=True)
    failed = [result.id for result in report.results if result.verdict == "failed"]
    if failed:
        raise ThresholdError(
            f"vendor {vendor.name!r} fails {', '.join(failed)}",
            f"the reasons, and where the logs lie, are in {file}",
        )
    return 0


def table(report: ConformanceReport, wanted: Collection[str]) -> Table:
    """One row for each check that was ``wanted``: its verdict, and why or what was measured."""
    shown = table_of("check", "verdict", "", whole=2)
    for result in (result for result in report.results if result.id in wanted):
        shown.add_row(result.id, result.verdict, result.reason or result.detail)
    return shown


def summary(report: ConformanceReport) -> str:
    """Whose plugin it is, on which chip, and how many checks ended how."""
    what = report.chip or "without a chip"
    emulated = ", emulated" if report.emulated else ""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items())
    return f"{report.vendor} ({what}{emulated}): {counts}"
