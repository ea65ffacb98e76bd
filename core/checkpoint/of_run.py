"""The checkpoints of one run, on one rank: the one it goes on from, and the one it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.checkpoint.folder import began_with, read, require_new, require_same
from core.events import EventLog
from schemas import event as ev
from schemas.checkpoint import Checkpoint
from schemas.plan import Plan

if TYPE_CHECKING:
    from core.engines.base import Engine


class RunCheckpoints:
    """As ``plan.checkpoint`` asks. Made before the model is built, so that what cannot be is told at once."""

    def __init__(self, plan: Plan, data_manifest_sha256: str, rank: int, log: EventLog) -> None:
        """UsageError unless the checkpoint to load is of this run, and the one to save can be written."""
        load, save = plan.checkpoint.load, plan.checkpoint.save
        self._plan, self._data, self._log = plan, data_manifest_sha256, log
        self._loaded = None if load is None else Path(load).expanduser()
        self._saved = None if save is None else Path(save).expanduser()
        self._checkpoint: Checkpoint | None = None
        if self._loaded is not None:
            self._checkpoint = read(self._loaded)
            require_same(self._checkpoint, self._loaded, plan, data_manifest_sha256)
        if self._saved is not None and rank == 0:
            require_new(self._saved)

    @property
    def step(self) -> int:
        """Optimizer steps taken before this run."""
        return 0 if self._checkpoint is None else self._checkpoint.step

    def load_into(self, engine: Engine) -> None:
        """Have ``engine``, which is set up, go on where the checkpoint's run ended, if the plan names one."""
        if self._loaded is None or self._checkpoint is None:
            return
        from core.checkpoint import training

        training.load(engine, self._loaded, self._checkpoint, self._progress)
        self._done("loaded", self._loaded, self.step)

    def save_from(self, engine: Engine, step: int) -> None:
        """Keep the state after ``step``, if the plan asks for it."""
        if self._saved is None:
            return
        from core.checkpoint import training

        self._log.emit(ev.PhaseEvent, phase="save")
        reached = training.Reached(step, began_with(self._plan), self._data)
        training.save(engine, self._saved, reached, self._progress)
        self._done("saved", self._saved, step)

    def _progress(self, done: int, total: int) -> None:
        self._log.emit(ev.ProgressEvent, done=done, total=total)

    def _done(self, action: Literal["loaded", "saved"], folder: Path, step: int) -> None:
        self._log.emit(ev.CheckpointEvent, action=action, folder=str(folder), step=step)
