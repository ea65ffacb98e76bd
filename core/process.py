"""Processes that do not outlive their parent, on Linux; elsewhere a watch on the parent does it alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_WATCH_EVERY_S = 1.0


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends, and watch for a parent that has ended already.

    torch's elastic agent, killed with SIGKILL, would leave its workers on the accelerators otherwise.
    """
    parent = os.getppid()
    die_with_parent_in_child()
    threading.Thread(target=_watch, args=(parent,), name="accelmark-parent-watch", daemon=True).start()


def die_with_parent_in_child() -> None:
    """The kernel's half alone, which holds across an exec: for a child between fork and exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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
