"""``new-vendor``: makes a vendor's plugin, to be filled in. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from core.scaffold import create


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``new-vendor``."""
    parser.add_argument("name", metavar="NAME", help="the vendor's name, as `--vendor` will take it")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where its folder goes (default: here)"
    )


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Print the new folder, and what to do next."""
    folder = create("vendor", arguments.name, arguments.out)
    print(folder)
    console.print(f"next: pip install -e '{folder}[test]' && accelmark conform {arguments.name}", soft_wrap=True)
    return 0
