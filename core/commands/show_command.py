"""``show``: one case, one of its configs, or a record file, in full. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from core import cases
from core.cli import new_console, print_json
from core.record import RECORD_FILE, read_record
from schemas.base import Schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``show``."""
    parser.add_argument("what", metavar="CASE|RECORD", help="a case, a record file, or a run folder")
    parser.add_argument("--config", metavar="TOPOLOGY", help="this config of the case")
    parser.add_argument("--json", action="store_true", help="one object on stdout")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Print every field."""
    value = _value(arguments.what, arguments.config)
    if arguments.json:
        print_json(value.model_dump(mode="json"))
        return 0
    from core.console import table_of

    table = table_of("field", "value")
    for field, content in _flat("", value.model_dump(mode="json")):
        table.add_row(field, content)
    new_console().print(table)
    return 0


def _value(what: str, config: str | None) -> Schema:
    path = Path(what)
    record = path / RECORD_FILE if path.is_dir() else path
    if record.suffix == ".json" and record.is_file():
        return read_record(record)
    loaded = cases.resolve(what, "record")
    return loaded.config(config).value if config else loaded.case


def _flat(prefix: str, value: object) -> list[tuple[str, str]]:
    """Nested objects as dotted fields; lists of plain values stay on one line."""
    if isinstance(value, dict) and value:
        return [row for key, item in value.items() for row in _flat(f"{prefix}.{key}" if prefix else key, item)]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [row for number, item in enumerate(value) for row in _flat(f"{prefix}.{number}", item)]
    return [(prefix, str(value))]
