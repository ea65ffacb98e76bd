"""What a run's plan asks for: refused before the model is built, or kept in mind until it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.checkpoint import folder as folders
from core.checkpoint.of_run import RunCheckpoints
from core.errors import UsageError
from core.events import EventLog
from schemas.checkpoint import Checkpoint
from schemas.plan import Plan

DATA = "da" * 32


@pytest.fixture
def make(make_plan: Callable[..., Plan], tmp_path: Path) -> Callable[..., RunCheckpoints]:
    def of_run(rank: int = 0, data: str = DATA, **folders: Path) -> RunCheckpoints:
        plan = make_plan(sets={f"checkpoint.{name}": str(folder) for name, folder in folders.items()})
        return RunCheckpoints(plan, data, rank, EventLog(tmp_path / "run", rank))

    return of_run


@pytest.fixture
def saved(make_plan: Callable[..., Plan], tmp_path: Path) -> Path:
    checkpoint = Checkpoint(
        step=45, updates=45, loss_scale=None, weights="random", data_manifest_sha256=DATA, parts=("weights",),
        plan=make_plan(),
    )  # fmt: skip
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / folders.MANIFEST).write_text(checkpoint.model_dump_json(), encoding="utf-8")
    return tmp_path / "saved"


def test_a_run_without_checkpoints_begins_with_step_0(make: Callable[..., RunCheckpoints]) -> None:
    checkpoints = make()
    assert checkpoints.step == 0
    checkpoints.load_into(None)  # type: ignore[arg-type]
    checkpoints.save_from(None, 45)  # type: ignore[arg-type]


def test_a_run_goes_on_after_its_checkpoints_step(make: Callable[..., RunCheckpoints], saved: Path) -> None:
    assert make(load=saved).step == 45


def test_other_data_are_refused(make: Callable[..., RunCheckpoints], saved: Path) -> None:
    with pytest.raises(UsageError, match="is of another run: data with manifest abab"):
        make(load=saved, data="ab" * 32)


def test_the_rank_that_writes_refuses_a_folder_that_is_there(
    make: Callable[..., RunCheckpoints], saved: Path
) -> None:
    with pytest.raises(UsageError, match="is there already"):
        make(save=saved)
    make(rank=1, save=saved)
    make(save=saved.with_name("new"))
