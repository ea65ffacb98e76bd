"""Peak resident set of this process, and the machine's memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil

from schemas.units import GIB

_STATUS = Path("/proc/self/status")


def peak_resident_gib() -> float:
    """Highest resident set of this process, GiB.

    Linux keeps it as ``VmHWM`` (proc_pid_status(5)), since the process began or since ``5`` was last written to
    ``/proc/self/clear_refs``. Elsewhere it is ``ru_maxrss`` of getrusage(2), which nothing resets.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 / GIB if found else _from_getrusage()


def capacity_gib() -> float:
    """Memory of the machine, GiB."""
    return float(psutil.virtual_memory().total) / GIB


def _from_getrusage() -> float:
    import resource  # Windows lacks it, and the plugin has to load there

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
