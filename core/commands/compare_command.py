"""``compare``: records side by side, and all that they were measured with and that differs. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from core.cli import new_console, print_json
from core.errors import UsageError
from core.record import RECORD_FILE, read_record
from core.report.say import significant
from schemas.record import Record

Rows = dict[str, list[str]]
"""What a row is called -> its cell of each record."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``compare``."""
    parser.add_argument(
        "records", metavar="RECORD", nargs="+", type=Path, help="two or more: record files, or run folders"
    )
    parser.add_argument("--json", action="store_true", help="one object on stdout: results, and differences")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Print what was measured, then what differs; UsageError unless there are two records or more."""
    if len(arguments.records) < 2:
        raise UsageError("one record alone cannot be compared", "name another one, or see it by the verb show")
    records = [_read(path) for path in arguments.records]
    from core.commands.tables import compared_table, result_rows

    results, differences = result_rows(records) | _costs(records), _differences(records)
    if arguments.json:
        print_json({"records": [r.id for r in records], "results": results, "differences": differences})
        return 0
    stdout = new_console()
    stdout.print(compared_table("", records, results))
    if differences:
        stdout.print(compared_table("differs", records, differences))
    else:
        stdout.print("nothing differs that the records tell")
    return 0


def _read(path: Path) -> Record:
    file = path / RECORD_FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"no record {str(path)!r}", "give a record file, or a run's folder")
    return read_record(file)


def _costs(records: Sequence[Record]) -> Rows:
    """What a step and a token take."""
    steps = [None if r.throughput is None else r.throughput.step_time_median_s for r in records]
    numbers = {
        "step s (median)": steps,
        "power W (mean)": [r.telemetry.power_mean_w for r in records],
        "J/token": [r.telemetry.energy_per_token_j for r in records],
    }
    return {name: ["/" if n is None else significant(n) for n in cells] for name, cells in numbers.items()}


def _differences(records: Sequence[Record]) -> Rows:
    """Every fact that is not the same of all records; ``/`` where one does not say it.

    Of a record without a plan (a published one), what it does not say is unknown, and so is no difference.
    """
    facts = [_facts(record) for record in records]
    names = dict.fromkeys(name for one in facts for name in one)
    rows = {name: [one.get(name, "/") for one in facts] for name in names}

    def differ(cells: Sequence[str]) -> bool:
        return len({cell for cell, record in zip(cells, records, strict=True) if record.plan or cell != "/"}) > 1

    return {name: cells for name, cells in rows.items() if differ(cells)}


def _facts(record: Record) -> dict[str, str]:
    """What was run, every setting of the plan by its name on the command line, and on what."""
    from core.commands.tables import settings_of

    names = ("case", "vendor", "chip", "topology", "engine", "precision", "parallel", "weights", "data")
    facts = {name: str(getattr(record, name)) for name in names}
    if record.plan is not None:
        settings = {name: value for name, value in settings_of(record.plan).items() if name not in facts}
        facts |= {"global batch size": str(record.plan.global_batch_size)} | settings
    facts |= {f"environment {key}": value for key, value in record.environment.items()}
    return facts | {f"math_mode {key}": value for key, value in record.math_mode.items()}
