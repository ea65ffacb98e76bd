"""One rank of chains of jobs, for the tests of checkpoints: prints each link's losses.

The first link of a chain trains, saves, and trains on without a break. Every other one loads what the first saved,
saves it again, and trains the same further steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from core.checkpoint import folder as folders
from core.checkpoint import training
from core.engines.base import Engine
from schemas.checkpoint import Part
from tests.core.engines.job import meet, set_up

SAVED, LAST = 3, 6
"""Steps."""


def forget_moments(engine: Engine) -> None:
    """The planted fault: weights are restored, and what the optimizer remembers is not."""
    restore = engine.restore

    def forgetful(part: Part, folder: Path) -> None:
        if not part.startswith("exp_avg"):
            restore(part, folder)

    engine.restore = forgetful  # type: ignore[method-assign]


def nothing(done: int, total: int) -> None:
    """Takes the progress."""


def run_chain(links: list[dict[str, Any]], folder: Path, rank: int, world: int) -> list[list[float]]:
    """Each link's losses of the steps after ``SAVED``; link ``n`` saves into ``folder / str(n)``."""
    folder.mkdir(exist_ok=True)
    found = []
    for number, link in enumerate(links):
        sets = link["sets"] | ({"checkpoint.load": str(folder / "0")} if number else {})
        ready = set_up({"case": "llama2_7b"} | link | {"sets": sets}, rank, world)
        if number == 0:
            ready.train(1, SAVED)
        else:
            if link.get("fault") == "forget_moments":
                forget_moments(ready.engine)
            checkpoint = folders.read(folder / "0")
            training.load(ready.engine, folder / "0", checkpoint, nothing)
        reached = training.Reached(SAVED, "random", "data")
        training.save(ready.engine, folder / str(number), reached, nothing)
        found.append(ready.train(SAVED + 1, LAST)[0])
        ready.engine.close()
    return found


def export(link: dict[str, Any], folder: Path, rank: int, world: int) -> None:
    """Write the weights that a job starts with, as they are."""
    ready = set_up({"case": "llama2_7b"} | link, rank, world)
    training.save_part(ready.engine, "weights", folder)
    ready.engine.close()


def main(job: dict[str, Any]) -> None:
    """Run all chains, or export what all links start with, and print."""
    rank, world = meet(job["store"])
    folder = Path(job["folder"])
    for name, link in job.get("exports", {}).items():
        export(link, folder / name, rank, world)
    found = {name: run_chain(links, folder / name, rank, world) for name, links in job.get("chains", {}).items()}
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()
