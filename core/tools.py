"""For vendor plugins: vendors' command line tools, and which devices environment variables leave visible."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from schemas.chip import TelemetryReading

TIMEOUT_S = 10.0
SAMPLE_EVERY_S = 5.0
"""How old a tool's output may be for a sample: a process a second for each rank would disturb what is measured."""


class Tool:
    """A command that tells of devices.

    ``writes`` is the file in its working folder that holds what it tells, where that is not its output;
    ``elsewhere`` is where its driver installs it, for where that is not on the PATH.
    """

    def __init__(self, *command: str, writes: str | None = None, elsewhere: str | None = None) -> None:
        self._command, self._writes, self._elsewhere = command, writes, elsewhere
        self._taken_s = float("-inf")
        self._output: str | None = None

    @property
    def path(self) -> str | None:
        """Where it is installed; None where it is not.

        Beside the interpreter, too: pip installs there, and not every environment is activated.
        """
        name = self._command[0]
        places = (name, str(Path(sys.executable).parent / name), self._elsewhere)
        return next((found for place in places if place and (found := shutil.which(place))), None)

    def read(self) -> str | None:
        """What it tells now; None when it is not installed, fails, or takes longer than ``TIMEOUT_S``.

        It runs in an empty folder of its own, since some tools leave files where they run.
        """
        program = self.path
        if program is None:
            return None
        with tempfile.TemporaryDirectory(prefix="accelmark-tool-") as folder:
            try:
                done = subprocess.run(
                    [program, *self._command[1:]],
                    cwd=folder,
                    env={**os.environ, "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=TIMEOUT_S,
                    check=True,
                )
                told = (Path(folder) / self._writes).read_bytes() if self._writes else done.stdout
            except (OSError, subprocess.SubprocessError):
                return None
        return told.decode("utf-8", errors="replace")

    def sample(self) -> str | None:
        """As ``read``, but not more often than every ``SAMPLE_EVERY_S``; between, what it told last."""
        now_s = time.monotonic()
        if now_s - self._taken_s >= SAMPLE_EVERY_S:
            self._output, self._taken_s = self.read(), now_s
        return self._output

    def silence(self) -> TelemetryReading | None:
        """The reading where it told nothing, but may next time: all unknown; None where it is not installed."""
        return None if self.path is None else TelemetryReading()


def number(text: object) -> float | None:
    """The number that a tool's value begins with (``109.51W``, ``45 C``); None where there is none (``N/A``)."""
    found = re.match(r"\s*[-+]?\d+(\.\d+)?", str(text))
    return float(found[0]) if found else None


def visible_devices(variables: Sequence[str], uuids: Sequence[str | None]) -> list[int]:
    """Indices of the physical devices in the order in which this process numbers them.

    ``variables``: those that limit the vendor's devices, the one that wins first; an empty one counts only if no
    other is set. ``uuids``: one a physical device, None where unknown. Entries are indices or beginnings of UUIDs;
    as in CUDA, what stands behind an entry that names no device is ignored.
    """
    values = [os.environ[name] for name in variables if name in os.environ]
    if not values:
        return list(range(len(uuids)))
    named: list[int] = []
    for entry in next((value for value in values if value), "").split(","):
        index = _named(entry.strip(), uuids)
        if index is None:
            break
        named.append(index)
    return named


def _named(entry: str, uuids: Sequence[str | None]) -> int | None:
    if entry.isdecimal():
        return int(entry) if int(entry) < len(uuids) else None
    fitting = [index for index, uuid in enumerate(uuids) if entry and uuid is not None and uuid.startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None
