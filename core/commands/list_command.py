"""``list``: what is installed. Imports no torch."""

from __future__ import annotations

import argparse
from typing import get_args

from rich.console import Console

from core.cli import new_console, print_json
from schemas.chip import PeakPrecision

KINDS = ("vendors", "chips", "cases", "configs", "engines")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``list``."""
    parser.add_argument(
        "kind", nargs="?", choices=KINDS, default="cases", metavar="KIND",
        help=f"{', '.join(KINDS)} (default: cases)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="an array of objects on stdout")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Print the rows of one kind."""
    rows = _rows(arguments.kind)
    if arguments.json:
        print_json(rows)
        return 0
    from core.console import table_of

    table = table_of(*(rows[0] if rows else ("nothing installed",)), whole=2)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    new_console().print(table)
    return 0


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "/" if value is None else str(value)


def _rows(kind: str) -> list[dict[str, object]]:
    """One object a row; every row of a kind has the same keys."""
    if kind == "engines":
        from core.engines.catalog import ENGINES

        return [
            {
                "engine": engine.name,
                "precisions": [*engine.precisions],
                "zero_stages": [*engine.zero_stages],
                "packages": [*engine.packages],
            }
            for engine in ENGINES
        ]
    if kind in ("vendors", "chips"):
        from core.plugins import discover

        found = discover()
        if kind == "vendors":
            return [
                {"vendor": f.name, "distribution": f.distribution, "status": f.status, "reason": f.reason}
                for f in found
            ]
        return [
            {
                "chip": chip.name,
                "vendor": chip.vendor,
                "memory_gb": chip.memory_gb,
                **{f"{name}_tflops": chip.peak(name).tflops for name in get_args(PeakPrecision)},
            }
            for f in found
            if f.vendor
            for chip in f.vendor.chips
        ]
    return _case_rows(kind)


def _case_rows(kind: str) -> list[dict[str, object]]:
    from core.cases import installed

    if kind == "configs":
        return [
            {
                "case": name,
                "config": config.value.name,
                "vendor": config.value.vendor,
                "engine": config.value.engine,
                "runs": [run.id for run in config.value.runs],
                "from": "case" if config.source == f"config_{config.value.name}.py" else config.source,
            }
            for name, _, loaded, _ in installed()
            if loaded
            for config in loaded.configs
        ]
    return [
        {
            "case": name,
            "distribution": distribution,
            "status": "ok" if loaded else "broken",
            "reason": reason,
            "configs": [config.value.name for config in loaded.configs] if loaded else [],
        }
        for name, distribution, loaded, reason in installed()
    ]
