"""``doctor``: what would keep a run from working here. Imports no torch."""

from __future__ import annotations

import argparse
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console

from core import plugins
from core.cli import print_json
from core.engines.catalog import ENGINES
from core.launch import ROOT
from core.selection import missing_packages
from core.user_chips import VARIABLE, user_chips

LOWEST_TORCH = (2, 6)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    verdict: Literal["ok", "note", "problem"]
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``doctor``."""
    parser.add_argument("--json", action="store_true", help="an array of checks on stdout")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Look at everything; exit code 3 when something will not work."""
    checks = [*_python(), *_engines(), *_vendors(), *_user_chips(), *_chips(), *_shadowing()]
    if arguments.json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            print(f"{check.verdict:7} {check.what}: {check.text}")
    return 3 if any(check.verdict == "problem" for check in checks) else 0


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    compiler = shutil.which("g++") or shutil.which("c++")
    text = compiler or "none found: runs with compile=true on the CPU, and some vendors' kernels, need one"
    yield Check("C++ compiler", "ok" if compiler else "note", text)


def _engines() -> Iterator[Check]:
    for engine in ENGINES:
        missing = missing_packages(engine)
        if missing:
            text = f"needs {', '.join(missing)}: pip install 'accelmark[{engine.extra}]'"
            yield Check(f"engine {engine.name}", "note", text)
        else:
            versions = ", ".join(f"{name} {_version(name)}" for name in engine.packages)
            yield Check(f"engine {engine.name}", "ok", versions)
    torch = _version("torch")
    found = re.match(r"(\d+)\.(\d+)", torch)
    if found and (int(found[1]), int(found[2])) < LOWEST_TORCH:
        yield Check("torch", "problem", f"{torch} is older than {'.'.join(map(str, LOWEST_TORCH))}")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # a vendor's build may carry another name
        return "of an unknown version"


def _vendors() -> Iterator[Check]:
    names = [found.name for found in plugins.discover()]
    for found in plugins.discover():
        what = f"vendor {found.name} ({found.distribution})"
        if found.vendor is None:
            yield Check(what, "problem", f"broken: {found.reason}")
        elif names.count(found.name) > 1:
            yield Check(what, "problem", f"provided twice; choose with --vendor {found.name}@{found.distribution}")
        else:
            yield Check(what, "ok", ", ".join(chip.name for chip in found.vendor.chips))


def _user_chips() -> Iterator[Check]:
    """The user's own chip file: an entry whose vendor is misspelt would be passed over in silence."""
    for chip in user_chips():
        installed = plugins.is_installed(chip.vendor)
        text = "overrides the plugin's" if installed else "is of no installed vendor, so nothing uses it"
        yield Check(f"{VARIABLE} {chip.vendor}/{chip.name}", "ok" if installed else "problem", text)


def _chips() -> Iterator[Check]:
    present, failed = plugins.probe_all()
    for found in present:
        result = found.result
        count = "" if result.count is None else f"{result.count} × "  # any number of workers can share a CPU
        text = f"{count}{result.chip or 'unknown chip'} ({result.device_name}), vendor {found.vendor.name}"
        yield Check("chips here", "ok", text)
    for name, reason in failed.items():
        yield Check("chips here", "note", f"vendor {name} could not look: {reason}")


def _shadowing() -> Iterator[Check]:
    """Another ``core`` in the current folder wins over ours in ``python -m core.run``, though not in workers."""
    here = Path.cwd()
    if here != ROOT and (here / "core").is_dir():
        text = f"{here / 'core'} shadows AccelMark's here in `python -m core`: use the command `accelmark`"
        yield Check("package core", "note", text)
    else:
        yield Check("package core", "ok", str(ROOT / "core"))
