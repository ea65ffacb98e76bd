"""What core does where a vendor leaves a hook out. Registered beneath the vendor, in workers only."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from core import hookimpl, memory
from core.engines.catalog import engine_spec
from schemas.chip import Device, MemoryReading

if TYPE_CHECKING:
    from schemas.plan import Plan


@hookimpl(trylast=True)
def build_model(plan: Plan, stage: int) -> torch.nn.Module:
    """The stage's model as the plan's engine takes it: for most, the case's own model on the meta device."""
    module, _, name = engine_spec(plan.engine).model_builder.partition(":")
    builder: Callable[[Plan, int], torch.nn.Module] = getattr(importlib.import_module(module), name)
    return builder(plan, stage)


@hookimpl(trylast=True)
def collect_memory(device: Device) -> MemoryReading:
    """The CUDA-shaped statistics of the device's torch module; None for what it lacks."""
    return memory.read_peaks(device)
