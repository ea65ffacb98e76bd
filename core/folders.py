"""New folders for what a command leaves, named after what it is and when it was begun."""

from __future__ import annotations

import time
from pathlib import Path

from core.errors import UsageError

ATTEMPTS = 1000
"""Folders of one name that can be begun in one second."""


def new_folder(out: Path, name: str) -> Path:
    """Make ``NAME-YYYYMMDD-HHMMSS`` (UTC) in ``out``, and ``out`` if need be; UsageError where that cannot be."""
    base = f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    for attempt in range(ATTEMPTS):
        folder = (out / (f"{base}-{attempt}" if attempt else base)).absolute()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot create the folder {folder}: {error.strerror}", "name a writable one with --out"
            ) from error
        return folder
    raise UsageError(f"{out} holds {ATTEMPTS} folders {base}", "name another folder with --out")
