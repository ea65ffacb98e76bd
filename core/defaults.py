"""What core does where a vendor leaves a hook out. Registered beneath the vendor, in workers only."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from core import hookimpl
from core.engines.catalog import engine_spec
from schemas.chip import Device, MemoryReading
from schemas.units import GIB

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
    module = torch.get_device_module(device.type)
    stats = module.memory_stats(device.index) if hasattr(module, "memory_stats") else {}
    total = module.mem_get_info(device.index)[1] if hasattr(module, "mem_get_info") else None
    allocated, reserved = stats.get("allocated_bytes.all.peak"), stats.get("reserved_bytes.all.peak")
    return MemoryReading(
        peak_allocated_gib=None if allocated is None else allocated / GIB,
        peak_reserved_gib=None if reserved is None else reserved / GIB,
        peak_device_gib=None,
        capacity_gib=None if total is None else total / GIB,
        allocation_retries=stats.get("num_alloc_retries"),
        oom_count=stats.get("num_ooms"),
    )
