"""``validate``: cases, configs, reports and records, without torch and without their hardware."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from core import cases, plan, plugins
from core.cases import Config, LoadedCase
from core.cli import print_json
from core.errors import AccelMarkError
from core.report.say import counted

Verdict = Literal["ok", "note", "error"]


@dataclass(frozen=True)
class Result:
    """What was found of one thing."""

    what: str
    verdict: Verdict
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``validate``."""
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases (default: all that are installed)")
    parser.add_argument("--json", action="store_true", help="an array of results on stdout")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Check everything; exit code 2 when something is wrong."""
    names = arguments.cases or [name for name, *_ in cases.installed()]
    # `cases/*` also matches the files beside the cases.
    folders = [name for name in names if not Path(name).is_file() and Path(name).name != "__pycache__"]
    results = [result for name in folders for result in _case(name)]
    if arguments.json:
        print_json([asdict(result) for result in results])
    else:
        for result in results:
            print(f"{result.verdict:5} {result.what}: {result.text}")
    return 2 if any(result.verdict == "error" for result in results) else 0


def _case(name: str) -> Iterator[Result]:
    try:
        loaded = cases.resolve(name)
    except AccelMarkError as error:
        yield Result(name, "error", str(error))
        return
    yield Result(name, "ok", counted(len(loaded.configs), "config"))
    for vendor, why in loaded.unasked.items():
        yield Result(name, "error", f"vendor {vendor} gave no configs: {why}")
    for config in loaded.configs:
        yield from _config(loaded, config)
    yield from _sheets(loaded)


def _config(loaded: LoadedCase, config: Config) -> Iterator[Result]:
    """Every run of a config is planned, if its vendor is there to tell the chip."""
    what = f"{loaded.case.name} {config.value.name}"
    if not plugins.is_installed(config.value.vendor):
        text = f"vendor {config.value.vendor!r} is not installed: schema checked, plans not"
        yield Result(what, "note", text)
        return
    for run in config.value.runs:
        try:
            vendor = plugins.select(config.value.vendor)
            planned = plan.build(plan.Request(loaded, config, run, vendor))
        except AccelMarkError as error:
            yield Result(f"{what} {run.id}", "error", str(error))
        else:
            text = f"{planned.engine} {planned.parallel} GBS {planned.global_batch_size}"
            yield Result(f"{what} {run.id}", "ok", text)


def _sheets(loaded: LoadedCase) -> Iterator[Result]:
    """Reports, records and references load, and every typed cell says what was printed.

    A sheet's own mistakes are notes.
    """
    from core.report.check import check
    from core.report.load import load_records, load_references, load_reports

    try:
        records = load_records(loaded.folder / "records")
        for report in load_reports(loaded.folder / "reports"):
            findings = check(report, records)
            yield Result(f"{loaded.case.name} report {report.id}", "ok", counted(len(findings), "finding"))
            for finding in findings:
                verdict: Verdict = "error" if finding.in_data else "note"
                yield Result(f"{loaded.case.name} report {report.id}", verdict, finding.message.en)
    except AccelMarkError as error:
        yield Result(f"{loaded.case.name} reports", "error", str(error))
    else:
        yield Result(f"{loaded.case.name} records", "ok", counted(len(records), "record"))
    try:
        references = load_references(loaded.folder / "references")
    except AccelMarkError as error:
        yield Result(f"{loaded.case.name} references", "error", str(error))
    else:
        yield Result(f"{loaded.case.name} references", "ok", counted(len(references), "reference"))
