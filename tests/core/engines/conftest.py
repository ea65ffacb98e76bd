"""Starting small multi-rank jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import python_path

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
    return launch(folder, "job.py", world, job)


def launch(folder: Path, script: str, world: int, job: dict[str, Any]) -> dict[str, Any]:
    """Runs ``script`` of this folder on ``world`` ranks: what rank 0 prints last."""
    store = folder / f"store-{world}-{len(list(folder.iterdir()))}"
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(job | {"store": str(store)})]
    base = os.environ | {"PYTHONPATH": python_path(), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    base["ACCELMARK_CACHE"] = str(folder)
    ranks = [
        subprocess.Popen(
            command,
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        ended = [process.communicate(timeout=180) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    codes = [process.returncode for process in ranks]
    assert codes == [0] * world, "\n".join(errors[-3000:] for _, errors in ended)
    answer: dict[str, Any] = json.loads(ended[0][0].splitlines()[-1])
    return answer
