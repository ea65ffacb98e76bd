"""MLflow: a SQLite store of the run's own; ``mlflow ui --backend-store-uri sqlite:///RUN_DIR/mlflow/mlflow.db``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent anywhere; read on import
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from core.sinks.values import of_record, settings
from schemas.plan import Plan
from schemas.record import Record

WRITE_EVERY_S = 5.0
"""A transaction takes milliseconds, so that steps are written together."""
MOST_AT_ONCE = 1000
"""What the store takes in one transaction."""


class MLflow:
    """One run in an experiment named after the case."""

    def __init__(self, folder: Path, run: str, plan: Plan) -> None:
        for name in ("mlflow", "alembic"):  # they tell of each table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
        experiment = self._client.create_experiment(plan.case, artifact_location=str(folder / "artifacts"))
        self._id = self._client.create_run(experiment, run_name=run).info.run_id
        self._waiting: list[Metric] = []
        self._written_s = time.monotonic()
        parameters = [Param(name, str(value)) for name, value in settings(plan).items()]
        self._client.log_batch(self._id, params=parameters)

    def log(self, step: int, time_unix_s: float, values: Mapping[str, float]) -> None:
        """Metrics of one step."""
        self._waiting += [Metric(name, value, int(time_unix_s * 1e3), step) for name, value in values.items()]
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self._write()

    def close(self, record: Record) -> None:
        """The result as metrics, status and reason as tags."""
        ended_ms = int(((record.started_unix_s or 0.0) + (record.duration_s or 0.0)) * 1e3)
        self._waiting += [Metric(name, value, ended_ms, 0) for name, value in of_record(record).items()]
        self._write()
        tags = [RunTag("status", record.status), RunTag("reason", record.reason or "")]
        self._client.log_batch(self._id, tags=tags)
        status = {"ok": "FINISHED", "interrupted": "KILLED"}.get(record.status, "FAILED")
        self._client.set_terminated(self._id, status, end_time=ended_ms)

    def _write(self) -> None:
        while self._waiting:
            self._client.log_batch(self._id, metrics=self._waiting[:MOST_AT_ONCE])
            del self._waiting[:MOST_AT_ONCE]
        self._written_s = time.monotonic()
