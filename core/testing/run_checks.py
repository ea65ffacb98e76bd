"""Whole runs of the small case, launched, recorded and left behind as a user's are. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from rich.console import Console

from core.engines.catalog import EngineSpec, engine_spec
from core.errors import DeviceError
from core.events import read_events
from core.launcher import launch_run
from core.plugins import Vendor
from core.record import write_record
from core.runner import command_line, prepare_run_dir
from core.selection import missing_packages
from core.testing.check import FailedError, NotDeclaredError, NotRunError
from core.testing.small import reference_chip, small_plan
from schemas.event import ErrorEvent
from schemas.hyperparameters import OverrideValue
from schemas.plan import Plan
from schemas.record import Record

LOSS_ERROR = 1e-3
"""Relative, of every step. 1e-6 was seen between engines; half or twice the learning rate is off by percents."""
NORM_ERROR = 1e-2
TOO_WIDE = 4_000_000_000
"""A hidden layer of this width would take terabytes."""


class Runs:
    """The runs of one vendor's chip in one folder, and the reference that they are held against."""

    def __init__(self, vendor: Vendor, chip: str, ranks: int, folder: Path) -> None:
        self.vendor, self.chip, self.ranks, self.folder = vendor, chip, ranks, folder

    @property
    def weights(self) -> str:
        """Where the worker of the fp32 checks has left the initial weights."""
        return str(self.folder / "weights")

    def run(self, plan: Plan) -> tuple[Record, Path]:
        """Launch it; its record and its folder."""
        run_dir = prepare_run_dir(plan, self.folder / "runs")
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            launch_run(plan, run_dir, command_line(), Console(file=nowhere))
        record = write_record(run_dir)
        if record.status == "interrupted":
            raise KeyboardInterrupt
        return record, run_dir

    @cached_property
    def reference(self) -> Record:
        """The same case, weights and global batch on one rank of the reference chip, engine torch."""
        found = reference_chip()
        if found is None:
            raise NotRunError("no installed vendor has a reference chip to compare with")
        vendor, chip = found
        record, run_dir = self.run(small_plan(vendor, chip, settings={"weights": self.weights}))
        if record.status != "ok":
            raise NotRunError(f"the reference run on {chip} ended as {record.status}: {record.reason} ({run_dir})")
        return record


def torch_follows_the_reference(runs: Runs) -> str:
    """FSDP2 where there are two ranks."""
    return _follows(runs, engine_spec("torch"), zero_stage=3 if runs.ranks > 1 else 0)


def deepspeed_follows_the_reference(runs: Runs) -> str:
    """ZeRO stage 3 where there are two ranks."""
    return _follows(runs, engine_spec("deepspeed"), zero_stage=3 if runs.ranks > 1 else 0)


def megatron_follows_the_reference(runs: Runs) -> str:
    """Tensor parallel where there are two ranks."""
    return _follows(runs, engine_spec("megatron"), tensor_parallel=runs.ranks)


def _follows(runs: Runs, engine: EngineSpec, **layout: OverrideValue) -> str:
    missing = missing_packages(engine)
    if missing:
        raise NotRunError(f"{' and '.join(missing)} not installed: pip install 'accelmark[{engine.extra}]'")
    settings = {"weights": runs.weights, **layout}
    plan = small_plan(runs.vendor, runs.chip, runs.ranks, engine.name, settings)
    record, run_dir = runs.run(plan)
    if refusal := _refusal(run_dir):
        raise NotDeclaredError(f"prepare_engine refuses {engine.name}: {refusal}")
    if record.status != "ok":
        raise FailedError(f"{record.status}: {record.reason} ({run_dir})")
    losses = largest_error("loss", record.loss.curve, runs.reference.loss.curve, LOSS_ERROR)
    norms = largest_error(
        "gradient norm", record.loss.grad_norm_curve, runs.reference.loss.grad_norm_curve, NORM_ERROR
    )
    return f"{runs.ranks} ranks, losses within {losses:.1e}, gradient norms within {norms:.1e}"


def _refusal(run_dir: Path) -> str | None:
    """What ``prepare_engine`` said, where a DeviceError of its own ended the run."""
    ended = [event for event in read_events(run_dir) if isinstance(event, ErrorEvent)]
    refused = [event for event in ended if event.exit_code == DeviceError.exit_code]
    return next((event.reason for event in refused if "in prepare_engine" in event.traceback), None)


def largest_error(what: str, found: Sequence[float], expected: Sequence[float], limit: float) -> float:
    """The largest relative difference of two curves; FailedError: it is over ``limit``, or steps are missing."""
    if len(found) != len(expected):
        raise FailedError(f"the {what} is told for {len(found)} steps, of {len(expected)}")
    errors = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
    worst = max(errors)
    if worst > limit:
        step = errors.index(worst)
        raise FailedError(
            f"the {what} of step {step + 1} is {found[step]:.6f}, on the CPU {expected[step]:.6f}: "
            f"off by {worst:.1e}, over {limit:.0e}"
        )
    return worst


def out_of_memory_is_recorded(runs: Runs) -> str:
    """Status ``oom``, with the device's own words."""
    record, run_dir = runs.run(small_plan(runs.vendor, runs.chip, settings={"model.intermediate_size": TOO_WIDE}))
    if record.status != "oom":
        raise FailedError(f"the run ended as {record.status}, not oom: {record.reason} ({run_dir})")
    return (record.reason or "")[:160]
