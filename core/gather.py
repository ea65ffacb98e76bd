"""Brings the event files of all nodes to rank 0's through the store where the ranks met; no disk is shared."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from core.events import event_file

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

WITHIN_S = 60.0
"""After a run that went well, every rank has written its last event by then."""
WITHIN_AFTER_FAILURE_S = 10.0
"""Ranks that are gone for good are not waited for any longer."""
WITHIN_WITHOUT_STORE_S = 2.0
"""The store went with the agent that kept it; this node's ranks get that long to write what they say of it."""
_POLL_S = 0.1
_FAILED = "failed"
"""Set by every rank that does: a collective library may let the ranks of other nodes wait for it in vain."""


def beside(store: Store) -> Store:
    """A connection of its own, for another thread: one on which the main thread waits is locked, maybe for good.

    Torch before 2.8 cannot make one.
    """
    return store.clone() if hasattr(store, "clone") else store


def has_failure(store: Store) -> bool:
    """Whether a rank of this run has failed; where the store is gone, its agent ends this rank, too."""
    with contextlib.suppress(Exception):
        return bool(store.check([_FAILED]))
    return False


def exchange(store: Store, run_dir: Path, rank: int, world_size: int, *, failed: bool) -> None:
    """This rank's part of bringing all events to rank 0; called once, when its last event is written."""
    if failed:
        with contextlib.suppress(Exception):
            store.set(_FAILED, str(rank))
    if rank == 0:
        _gather(store, run_dir, world_size, failed=failed)
    else:
        _deliver(store, run_dir, rank)


def _deliver(store: Store, run_dir: Path, rank: int) -> None:
    """Hand this rank's events over.

    A store that is gone (with rank 0's node) is no failure of its own: the events lie in this node's run folder.
    """
    with contextlib.suppress(Exception):  # torch's own errors differ from release to release
        store.set(f"events {rank}", event_file(run_dir, rank).read_text(encoding="utf-8"))


def _gather(store: Store, run_dir: Path, world_size: int, *, failed: bool) -> None:
    """On rank 0: write the events that other nodes' ranks have delivered; those of lost ranks are missing then.

    In the order in which they come: this process may be killed before the last of them does.
    """
    deadline = time.monotonic() + (WITHIN_AFTER_FAILURE_S if failed else WITHIN_S)
    missing = set(range(1, world_size))
    try:
        while missing and time.monotonic() < deadline:
            for rank in [rank for rank in sorted(missing) if store.check([f"events {rank}"])]:
                missing.remove(rank)
                if not event_file(run_dir, rank).exists():
                    event_file(run_dir, rank).write_bytes(store.get(f"events {rank}"))
            time.sleep(_POLL_S)
    except Exception:  # torch's own errors differ from release to release
        time.sleep(WITHIN_WITHOUT_STORE_S)
