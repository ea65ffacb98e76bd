"""Runs under a launcher that is not ours: every process is one rank, and rank 0 builds the records."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from core import runner, worker
from core.record import OUTCOME_FILE, Outcome
from core.worker import Rank
from schemas.record import Record

VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE")


OTHERS_END_WITHIN = timedelta(seconds=60)


def is_worker() -> bool:
    """Whether another launcher (torchrun) started this process as one rank."""
    return all(name in os.environ for name in VARIABLES)


def run(options: runner.Options, console: Console) -> tuple[list[Record], int]:
    """Do this rank's part of every selected run; the records (on rank 0) and the exit code."""
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    rank = Rank.from_environment()
    planned = runner.plans(options, console, _world(rank))
    store, _, _ = next(rendezvous("env://", rank.rank, rank.world_size))
    records: list[Record] = []
    for number, plan in enumerate(planned):
        # A prefix of its own, since the launcher's store outlives the run before.
        run_store = PrefixStore(f"accelmark-{number}", store)
        if rank.rank == 0:
            run_store.set("run_dir", str(runner.prepare_run_dir(plan, options.out)))
        run_dir = Path(run_store.get("run_dir").decode())
        code = worker.work(plan, run_dir, rank, run_store)
        run_store.set(f"ended {rank.rank}", str(code))
        if rank.rank == 0:
            if code == 0:  # the others write their last events a moment later
                run_store.wait([f"ended {other}" for other in range(rank.world_size)], OTHERS_END_WITHIN)
            records.append(_record(run_dir, code, console))
        if code != 0:
            return records, code
    return records, 0


def _world(rank: Rank) -> tuple[int, int]:
    """Nodes and ranks per node."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", rank.world_size))
    return rank.world_size // per_node, per_node


def _record(run_dir: Path, code: int, console: Console) -> Record:
    outcome = Outcome(command=runner.command_line(), exit_code=code)
    (run_dir / OUTCOME_FILE).write_text(outcome.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return runner.finish(run_dir, console)
