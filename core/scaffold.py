"""New projects from the templates in ``core/templates``: a vendor's plugin, a case."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from core.entry_points import distribution_of, entry_points
from core.errors import DeviceError, UsageError

TEMPLATES = Path(__file__).parent / "templates"
FOLDERS = {"vendor": "accelmark-{}", "case": "accelmark-case-{}"}
"""What a project's folder is called, which is its distribution's name, too."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")


def create(kind: Literal["vendor", "case"], name: str, out: Path) -> Path:
    """Make the project in a new folder of ``out`` and return that.

    UsageError for a name that is no module's or taken, or a folder that is there; DeviceError without copier.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a {kind}",
            "take lower-case letters, digits and _, 30 at most, the first one a letter",
        )
    owners = [distribution_of(entry) for entry in entry_points(f"accelmark.{kind}s") if entry.name == name]
    if owners:
        raise UsageError(
            f"{owners[0]} has a {kind} {name!r}, installed here", "choose another name, or uninstall it"
        )
    folder = out / FOLDERS[kind].format(name.replace("_", "-"))
    if folder.exists():
        raise UsageError(f"{folder} is already there", "remove it, or make the project elsewhere with --out")
    try:
        import copier
    except ImportError as error:
        raise DeviceError(
            "new projects are made by copier, which is not installed", "pip install 'accelmark[templates]'"
        ) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        copier.run_copy(str(TEMPLATES / kind), folder, data={"name": name}, defaults=True, quiet=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}", "name a writable folder with --out"
        ) from error
    return folder
