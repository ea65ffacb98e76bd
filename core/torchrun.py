"""Runs under a launcher that is not ours: every process is one rank, and rank 0 builds the records."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from core import cluster, runner, stacks, worker
from core.launcher import write_outcome
from core.outcome import Outcome
from core.worker import Rank
from schemas.record import Record


def is_worker() -> bool:
    """Whether another launcher (torchrun, srun) started this process as one rank."""
    return cluster.is_rank(os.environ)


def run(options: runner.Options, console: Console) -> tuple[list[Record], int]:
    """Do this rank's part of every selected run; the records (on rank 0) and the exit code.

    Nodes need not share a file system: each keeps its own run folder under its own ``--out``, and rank 0's is
    completed with the others' events.
    """
    from torch._C._distributed_c10d import PrefixStore

    rank = Rank.from_environment()
    planned = runner.plans(options, console, _world(rank))
    store = worker.meeting_store(rank)
    records: list[Record] = []
    for number, plan in enumerate(planned):
        # A prefix of its own, since the launcher's store outlives the run before.
        run_store = PrefixStore(f"accelmark-{number}", store)
        if rank.rank == 0:
            run_store.set("run", runner.prepare_run_dir(plan, options.out).name)
        run_dir = (options.out / run_store.get("run").decode()).absolute()
        if rank.local_rank == 0:
            runner.join_run_dir(plan, run_dir)
        stacks.dump_on_request(run_dir, rank.rank)

        def close(code: int, run_dir: Path = run_dir) -> None:
            if rank.rank == 0:
                records.append(_record(run_dir, code, console))

        code = worker.work(plan, run_dir, rank, lambda run_store=run_store: run_store, close)  # type: ignore[misc]
        if code != 0:
            return records, code
    return records, 0


def _world(rank: Rank) -> tuple[int, int]:
    """Nodes and ranks per node."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", rank.world_size))
    return rank.world_size // per_node, per_node


def _record(run_dir: Path, code: int, console: Console) -> Record:
    write_outcome(run_dir, Outcome(command=runner.command_line(), exit_code=code, launched_nodes=0))
    return runner.finish(run_dir, console)
