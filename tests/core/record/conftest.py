"""Folders of runs, empty or of a run that ended well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.plan import Plan
from tests.core.record.run_folder import MakeFolder, RunFolder


@pytest.fixture
def make_folder(
    tmp_path: Path, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeFolder]:
    made: list[RunFolder] = []

    def make(name: str = "toy-X1x1x2-base-1", topology: str = "X1x1x2", **values: Any) -> RunFolder:
        made.append(RunFolder(tmp_path / name, make_plan(topology=topology, **values), monkeypatch))
        return made[-1]

    yield make
    for folder in made:
        for log in folder.logs.values():
            log.close()


@pytest.fixture
def whole(make_folder: MakeFolder) -> RunFolder:
    """A run of two ranks that ended well; rank 1 took longer."""
    folder = make_folder(run={"fix_hp": {"gradient_accumulation_steps": 4}})
    for rank in (0, 1):
        folder.start(rank)
        folder.train(rank, window_s=40.0 + rank * 10)
        folder.finish(rank)
    folder.outcome(exit_code=0)
    return folder
