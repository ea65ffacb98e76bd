"""A worker: the process of one rank of one run, which says how it ended whatever ends it."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core import notices, process, stacks
from core.errors import AccelMarkError
from core.events import EventListener, EventLog
from core.failure import classify, told
from core.gather import beside, exchange, has_failure
from core.guard import Close, Guard
from core.launch import RUN_DIR_VARIABLE
from core.layout import Rank
from core.training import Training
from core.watch import RankWatch
from schemas import event as ev
from schemas.plan import Plan

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PLAN_FILE = "plan.json"
EXIT_UNWRITABLE = 74
"""Of a worker that cannot write its events; EX_IOERR of sysexits.h."""
_UNWRITABLE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO}


def main() -> int:
    """Entry of a worker that ``core.run`` launched: the plan lies in the run folder."""
    process.die_with_parent(RUN_DIR_VARIABLE)
    run_dir = Path(os.environ[RUN_DIR_VARIABLE])
    rank = Rank.from_environment()
    stacks.dump_on_request(run_dir, rank.rank)
    _log_to_file(run_dir, rank)
    plan = Plan.model_validate_json((run_dir / PLAN_FILE).read_text(encoding="utf-8"))
    return work(plan, run_dir, rank, partial(meeting_store, rank) if plan.topology.nodes > 1 else None)


def meeting_store(rank: Rank, within: timedelta | None = None) -> Store:
    """Where the ranks of all nodes meet, as the launcher's variables say; torch's DistError if they do not."""
    from torch.distributed.constants import default_pg_timeout
    from torch.distributed.rendezvous import rendezvous

    waits = within or default_pg_timeout
    store: Store = next(rendezvous("env://", rank.rank, rank.world_size, timeout=waits))[0]
    store.set_timeout(default_pg_timeout)  # later, ranks wait for as long as a run may take to end
    return store


def work(  # noqa: PLR0913, PLR0917 - what a launcher of ours does by itself is handed in under another
    plan: Plan,
    run_dir: Path,
    rank: Rank,
    open_store: Callable[[], Store] | None = None,
    close: Close | None = None,
    listener: EventListener | None = None,
) -> int:
    """Do this rank's part and return the exit code.

    ``open_store`` gives where the ranks meet, and where their events are gathered at the end; None leaves both to
    the launcher. ``close`` is called last, with the exit code, where no launcher of ours watches. ``listener`` is
    told every event of this rank.
    """
    log = EventLog(run_dir, rank.rank)
    if listener is not None:
        log.listeners.append(listener)
    log.emit(ev.PhaseEvent, phase="start")
    training = Training(plan, rank, log, run_dir)
    watch = RankWatch(rank.rank, plan.measure, time.monotonic())
    aside: Store | None = None

    def last(code: int) -> None:
        if aside is not None:
            exchange(aside, run_dir, rank.rank, rank.world_size, failed=code != 0)
        if close is not None:
            close(code)

    def failed_elsewhere() -> bool:
        return aside is not None and has_failure(aside)

    alone, orderly = close is not None, open_store is not None
    guard = Guard(log, run_dir, lambda: training.step, watch, last, failed_elsewhere, alone=alone, orderly=orderly)
    try:
        store = open_store() if open_store is not None else None
        aside = None if store is None else beside(store)
        with notices.recorded(log):
            training.run(store)
        log.emit(ev.FinishEvent)
        code = 0
    except BaseException as error:  # whatever ends this rank, the record has to say so
        code = _report(error, training, log)
    guard.main_thread_ended(code)
    return code


def _report(error: BaseException, training: Training, log: EventLog) -> int:
    """Say what ended this rank, and return its exit code."""
    status, reason = classify(error, training.context)
    code = error.exit_code if isinstance(error, AccelMarkError) else 1
    step = getattr(error, "step", training.step)  # a loss is read when later steps are queued already
    trace = traceback.format_exc()
    try:
        memory = training.context.memory() if status == "oom" else None
        if memory is not None:
            log.emit(ev.MemoryEvent, memory=memory)
            reason = f"{reason} ({told(memory)})"
        log.emit(ev.ErrorEvent, status=status, step=step, reason=reason, traceback=trace, exit_code=code)
        traceback.print_exc()
    except OSError:
        return EXIT_UNWRITABLE
    return EXIT_UNWRITABLE if isinstance(error, OSError) and error.errno in _UNWRITABLE else code


def _log_to_file(run_dir: Path, rank: Rank) -> None:
    """Send stdout and stderr, also of native code, to this rank's log in the run folder."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank{rank.rank:05d}.log").open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A failed rank must not wait for collectives that will never complete; and native threads have been seen to
    # abort an interpreter that shut down in good order.
    os._exit(code)
