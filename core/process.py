"""Processes that do not outlive their parent, on Linux; elsewhere a watch on the parent does it alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
"""Opened here: between fork and exec another thread's lock on the loader may be held for good."""
_PR_SET_PDEATHSIG = 1
_WATCH_EVERY_S = 1.0
_IMPORTED_UNIX_S = time.time()
_UNTIL_IMPORTED_S = 10.0
"""More than an interpreter takes to come this far, on a slow disk, too."""


def started_unix_s() -> float:
    """When this process was started, by the wall clock as it is now.

    A shell that becomes its last command (``bash -c 'pip install ... && python ...'``) hands on its own age; what
    went before the interpreter is then left out.
    """
    begun_s = _begun_unix_s()
    return begun_s if _IMPORTED_UNIX_S - begun_s < _UNTIL_IMPORTED_S else _IMPORTED_UNIX_S


def _begun_unix_s() -> float:
    if sys.platform != "linux":
        return psutil.Process().create_time()
    # Not by psutil: it adds to the time of the boot, which the kernel tells in whole seconds (proc_pid_stat(5)).
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


def die_with_parent(marker: str) -> None:
    """Ask the kernel for SIGKILL when the parent ends, and watch for a parent that has ended already.

    torch's elastic agent, killed with SIGKILL, would leave its workers on the accelerators otherwise. ``marker``:
    a variable that the parent has in its environment; a parent without it is another one than the agent, which
    has ended while this process started.
    """
    parent = os.getppid()
    die_with_parent_in_child()
    if not _has_variable(parent, marker):
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), name="accelmark-parent-watch", daemon=True).start()


def die_with_parent_in_child() -> None:
    """The kernel's half alone, which holds across an exec: for a child between fork and exec."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _has_variable(pid: int, name: str) -> bool:
    try:
        return name in psutil.Process(pid).environ()
    except psutil.Error:
        return False


def end_all(processes: Iterable[psutil.Process], within_s: float) -> None:
    """Kill what is still there, and wait until it is gone (or ``within_s`` is over)."""
    alive = list(processes)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=within_s)


def with_variable(name: str, value: str) -> list[psutil.Process]:
    """Processes that have ``name`` set to ``value`` in their environment, other than this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """Children, their children and so on; empty once ``pid`` is gone."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY_S)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_session(leader: int, sent: signal.Signals) -> None:
    """Signal the process group that ``leader`` heads; it may be gone already."""
    try:
        os.killpg(leader, sent)
    except ProcessLookupError:
        return
