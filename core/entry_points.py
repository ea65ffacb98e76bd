"""Entry points of installed distributions; in a checkout that is not installed, those of its setup.cfg."""

from __future__ import annotations

import configparser
import functools
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path

DISTRIBUTION = "accelmark"


def entry_points(group: str) -> tuple[EntryPoint, ...]:
    """All entry points of ``group``; setup.cfg stays the only registry of the in-tree ones."""
    installed = tuple(metadata.entry_points(group=group))
    if any(distribution_of(entry) == DISTRIBUTION for entry in installed):
        return installed
    return installed + _of_checkout(group)


def distribution_of(entry: EntryPoint) -> str:
    """The distribution that provides ``entry``."""
    return entry.dist.name if entry.dist is not None else DISTRIBUTION


@functools.cache
def _of_checkout(group: str) -> tuple[EntryPoint, ...]:
    setup_cfg = Path(__file__).resolve().parent.parent / "setup.cfg"
    parser = configparser.ConfigParser()
    parser.read(setup_cfg, encoding="utf-8")
    lines = parser.get("options.entry_points", group, fallback="").strip().splitlines()
    pairs = (line.partition("=") for line in lines)
    return tuple(EntryPoint(name.strip(), value.strip(), group) for name, _, value in pairs)
