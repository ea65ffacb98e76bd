"""Starting small multi-rank jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import python_path
from tests.forked import run_ranks

RunJob = Callable[..., dict[str, Any]]


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """``run_job(engine, world, sets, ...)`` trains a few steps on ``world`` ranks: losses, norms, optimizer."""
    return partial(train, tmp_path)


def train(
    folder: Path,
    engine: str,
    world: int,
    sets: dict[str, object] | None = None,
    *,
    case: str = "llama2_7b",
    steps: int = 5,
    fault: str | None = None,
    wrap: bool = False,
) -> dict[str, Any]:
    """One job, whose ranks meet in ``folder``: what rank 0 prints. ``wrap`` swaps in a vendor's optimizer."""
    job = {"engine": engine, "sets": sets or {}, "case": case, "steps": steps, "fault": fault, "wrap": wrap}
    return launch(folder, "job", world, job)


def launch(folder: Path, module: str, world: int, job: dict[str, Any]) -> dict[str, Any]:
    """Runs ``main`` of a module of this folder on ``world`` ranks: what rank 0 prints last."""
    store = folder / f"store-{world}-{len(list(folder.iterdir()))}"
    base = os.environ | {"PYTHONPATH": python_path(), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    base |= {"ACCELMARK_CACHE": str(folder), "LOCAL_WORLD_SIZE": str(world)}
    environments = [base | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    ended = run_ranks(f"tests.core.engines.{module}:main", job | {"store": str(store)}, environments, folder)
    assert [rank.code for rank in ended] == [0] * world, "\n".join(rank.errors[-3000:] for rank in ended)
    answer: dict[str, Any] = json.loads(ended[0].out.splitlines()[-1])
    return answer
