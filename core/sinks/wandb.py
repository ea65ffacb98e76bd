"""Weights & Biases, offline: ``wandb sync RUN_DIR/wandb/offline-run-*`` uploads a run, if and when you want to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from core.sinks.values import of_record, settings
from schemas.plan import Plan
from schemas.record import Record


class WeightsAndBiases:
    """One offline run; nothing but what is logged here goes into it."""

    def __init__(self, folder: Path, run: str, plan: Plan) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing is sent anywhere; read on import
        import wandb

        quiet = wandb.Settings(
            mode="offline",
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=plan.case, name=run, dir=str(folder.parent), config=settings(plan), settings=quiet,
            reinit="create_new",
        )  # fmt: skip

    def log(self, step: int, time_unix_s: float, values: Mapping[str, float]) -> None:
        """One row of the run's history."""
        self._run.log({**values, "time_unix_s": time_unix_s}, step=step)

    def close(self, record: Record) -> None:
        """The result goes into the run's summary."""
        self._run.summary.update({**of_record(record), "status": record.status, "reason": record.reason})
        self._run.finish(exit_code=0 if record.status == "ok" else 1)
