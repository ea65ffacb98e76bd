"""Traces a few steps with torch's profiler, and marks the parts of a step that kernel names do not tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from torch.profiler import profile, record_function, supported_activities

from core.trace_table import COMMUNICATION, LEADING, LOSS, OPTIMIZER, read_profile
from schemas.profile import Profile

FOLDER: Final = "profile"
"""In the run's folder."""


def loss_range() -> record_function:
    """Marks the output head and the cross-entropy."""
    return record_function(LOSS)


def optimizer_range() -> record_function:
    """Marks clipping and the optimizer's update."""
    return record_function(OPTIMIZER)


def communication_range() -> record_function:
    """Marks what moves weights and gradients between ranks, where names of kernels do not tell."""
    return record_function(COMMUNICATION)


def trace_steps(step: Callable[[], None], steps: int, synchronize: Callable[[], None], run_dir: Path) -> Profile:
    """Runs ``step`` ``steps`` times, keeps the trace in ``run_dir``, and says where its time went.

    One step more goes before them, and is not counted: it begins with a device that has nothing to do, and with
    ranks that have yet to meet.
    """
    file = run_dir / FOLDER / "rank00000.json.gz"
    file.parent.mkdir(exist_ok=True)
    synchronize()
    activities = supported_activities()  # type: ignore[no-untyped-call]
    with profile(activities=activities) as traced:
        with record_function(LEADING):
            step()
        for _ in range(steps):
            step()
        synchronize()
    traced.export_chrome_trace(str(file))
    return read_profile(file, steps, str(file.relative_to(run_dir)))
