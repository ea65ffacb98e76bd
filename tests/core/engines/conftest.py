"""Starting small multi-rank jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import python_path

ROOT = Path(__file__).parents[3]
RunJob = Callable[..., dict[str, Any]]


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    """``run_job(engine, world, sets, ...)`` trains a few steps on ``world`` ranks: losses, norms, optimizer."""

    def run(
        engine: str,
        world: int,
        sets: dict[str, object] | None = None,
        *,
        case: str = "llama2_7b",
        steps: int = 5,
        fault: str | None = None,
    ) -> dict[str, Any]:
        name = f"{engine}-{world}-{len(list(tmp_path.iterdir()))}"
        store = tmp_path / f"store-{name}"
        job = {
            "engine": engine,
            "sets": sets or {},
            "case": case,
            "steps": steps,
            "fault": fault,
            "store": str(store),
        }
        command = [sys.executable, str(Path(__file__).with_name("job.py")), json.dumps(job)]
        base = os.environ | {"PYTHONPATH": python_path(), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        base["ACCELMARK_CACHE"] = str(tmp_path)
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

    return run
