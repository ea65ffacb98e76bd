"""Runs under a launcher that is not ours: every process is one rank, and rank 0 builds the records."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from core import cluster, process, runner, sinks, stacks, worker
from core.errors import RunError
from core.events import EventLog, read_events
from core.launcher import write_outcome
from core.layout import Rank
from core.outcome import Outcome
from core.progress.lines import Lines
from core.relay import Relay
from core.sinks.feed import Feed
from schemas import event as ev
from schemas.plan import Plan
from schemas.record import Record

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PROGRESS_WITHIN_S = 5.0
_DONE = "."
"""Told in the place of a folder's name."""


def is_worker() -> bool:
    """Whether another launcher (torchrun, srun) started this process as one rank."""
    return cluster.is_rank(os.environ)


def run(options: runner.Options, console: Console) -> tuple[list[Record], int]:
    """Do this rank's part of every selected run; the records (on rank 0) and the exit code.

    Nodes need not share a file system: each keeps its own run folder under its own ``--out``, and rank 0's is
    completed with the others' events. So rank 0 alone knows which runs are done already.

    RunError when the ranks do not meet, of which rank 0 leaves a record, too.
    """
    from torch.distributed import DistError

    sinks.require(options.sinks)
    rank = Rank.from_environment()
    planned = runner.plans(options, console, _world(rank))
    records: list[Record] = []
    try:
        return records, _run_all(planned, options, rank, records, console)
    except DistError as error:
        within_s = planned[0].measure.start_timeout_s
        reason = f"the ranks did not meet within {within_s:g} s (measure.start_timeout_s): {error}".splitlines()[0]
        if rank.rank == 0:
            _never_met(planned[len(records)], options, reason, console)
        raise RunError(
            reason, "see that every rank was started, and reaches the first node's MASTER_ADDR and MASTER_PORT"
        ) from error


def _run_all(
    planned: Sequence[Plan], options: runner.Options, rank: Rank, records: list[Record], console: Console
) -> int:
    """One run after the other, until one fails; the exit code."""
    from torch._C._distributed_c10d import PrefixStore

    store = worker.meeting_store(rank, timedelta(seconds=planned[0].measure.start_timeout_s))
    begun_unix_s = process.started_unix_s()
    for number, plan in enumerate(planned):
        # A prefix of its own, since the launcher's store outlives the run before.
        run_store = PrefixStore(f"accelmark-{number}", store)
        if rank.rank == 0:
            before = runner.done_before(plan, options, console)
            run_store.set("run", _DONE if before else runner.prepare_run_dir(plan, options.out).name)
            records.extend([before] if before else [])
        name = run_store.get("run").decode()
        if name == _DONE:
            continue
        run_dir = (options.out / name).absolute()

        def done(record: Record, plan: Plan = plan, run_dir: Path = run_dir) -> None:
            records.append(record)
            _tell_sinks(options.sinks, plan, run_dir, record, console)

        code = _run_one(plan, run_dir, rank, run_store, done, console, begun_unix_s)
        begun_unix_s = time.time()
        if code != 0:
            return code
    return 0


def _never_met(plan: Plan, options: runner.Options, reason: str, console: Console) -> Record:
    """Rank 0's record of a run that could not begin."""
    run_dir = runner.prepare_run_dir(plan, options.out)
    log = EventLog(run_dir, 0)
    log.emit(ev.PhaseEvent, phase="start")
    log.emit(ev.ErrorEvent, status="hang", step=None, reason=reason, traceback=traceback.format_exc())
    log.close()
    return _record(run_dir, 1, console, process.started_unix_s())


def _run_one(  # noqa: PLR0913, PLR0917 - what all runs share, and what this one has of its own
    plan: Plan,
    run_dir: Path,
    rank: Rank,
    store: Store,
    done: Callable[[Record], None],
    console: Console,
    begun_unix_s: float,
) -> int:
    """This rank's part of one run; rank 0 shows its own progress and is done with the record. The exit code."""
    if rank.local_rank == 0:
        runner.join_run_dir(plan, run_dir)
    stacks.dump_on_request(run_dir, rank.rank)
    if rank.rank != 0:
        return worker.work(plan, run_dir, rank, lambda: store, lambda _code: None)
    # Lines from a thread: a view that is redrawn would take processor time from the training in this process.
    progress = Relay(lambda: Lines(plan, range(1), console, time.monotonic()))

    def close(code: int) -> None:
        progress.close(PROGRESS_WITHIN_S)
        done(_record(run_dir, code, console, begun_unix_s))

    return worker.work(plan, run_dir, rank, lambda: store, close, progress.put)


def _world(rank: Rank) -> tuple[int, int]:
    """Nodes and ranks per node."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", rank.world_size))
    return rank.world_size // per_node, per_node


def _record(run_dir: Path, code: int, console: Console, begun_unix_s: float) -> Record:
    outcome = Outcome(command=runner.command_line(), begun_unix_s=begun_unix_s, exit_code=code, launched_nodes=0)
    write_outcome(run_dir, outcome)
    return runner.finish(run_dir, console)


def _tell_sinks(names: Sequence[str], plan: Plan, run_dir: Path, record: Record, console: Console) -> None:
    """Tell the sinks of a run that has ended: while it went on, this process was measured."""
    feed = Feed(names, plan, run_dir, console)
    for event in sorted(read_events(run_dir), key=lambda event: event.time_unix_s):
        feed.put(event)
    feed.finish(record)
