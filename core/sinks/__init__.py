"""Experiment trackers that a run is told to, besides its record: none is imported unless it was asked for.

Each writes into a folder of its own in the run's folder, and sends nothing anywhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import DeviceError
from schemas.plan import Plan
from schemas.record import Record


class Sink(Protocol):
    """One tracker, opened for one run."""

    def __init__(self, folder: Path, run: str, plan: Plan) -> None:
        """Write into ``folder`` (which is made here) about ``run``."""

    def log(self, step: int, time_unix_s: float, values: Mapping[str, float]) -> None:
        """Keep the values of one step."""

    def close(self, record: Record) -> None:
        """The run has ended."""


@dataclass(frozen=True)
class SinkSpec:
    """One kind of sink. To add one, write its module after ``core.sinks.tensorboard`` and list it in ``SINKS``."""

    implementation: str
    """``module:class`` of a ``Sink``; its extra and folder have the name of the sink."""
    packages: tuple[str, ...]
    """Import names that must be installed."""


SINKS: Mapping[str, SinkSpec] = {
    "tensorboard": SinkSpec("core.sinks.tensorboard:TensorBoard", ("tensorboard",)),
    "wandb": SinkSpec("core.sinks.wandb:WeightsAndBiases", ("wandb",)),
    "mlflow": SinkSpec("core.sinks.mlflow:MLflow", ("mlflow", "sqlalchemy", "alembic")),
}


def require(names: Sequence[str]) -> None:
    """DeviceError unless what the named sinks import is installed."""
    for name in names:
        missing = [package for package in SINKS[name].packages if not _is_installed(package)]
        if missing:
            raise DeviceError(
                f"--sink {name} needs {' and '.join(missing)}, not installed for {sys.executable}",
                f"pip install 'accelmark[{name}]', or leave --sink {name} out",
            )


def _is_installed(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None  # a folder of that name, say ./wandb, has no origin


def open_sink(name: str, run_dir: Path, plan: Plan) -> Sink:
    """The sink called ``name`` for the run in ``run_dir``; may raise whatever its package does."""
    module, _, cls = SINKS[name].implementation.partition(":")
    kind: type[Sink] = getattr(importlib.import_module(module), cls)
    folder = run_dir / name
    folder.mkdir(exist_ok=True)
    return kind(folder, run_dir.name, plan)
