"""Resetting and sampling device memory; the peaks themselves come from the hook ``collect_memory``."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import torch

from schemas.chip import Device, MemoryReading
from schemas.units import GIB


def reset_peaks(device: torch.device) -> None:
    """Forget the peaks so far, so that those of set-up and warm-up are not reported.

    On the CPU that is the kernel's mark of the largest resident set (proc_pid_clear_refs(5)); where it cannot be
    reset, the peak is the process's own.
    """
    if device.type == "cpu":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return
    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats(device)


def allocated_gib(device: torch.device) -> float | None:
    """Device memory that tensors hold now (on the CPU: the process's resident set), GiB."""
    if device.type == "cpu":
        return float(psutil.Process().memory_info().rss) / GIB
    module = torch.get_device_module(device)
    return float(module.memory_allocated(device)) / GIB if hasattr(module, "memory_allocated") else None


def with_device_peak(reading: MemoryReading, device: Device) -> MemoryReading:
    """``reading`` with the device-wide peak added; for plugins whose torch module counts memory as CUDA's does.

    The driver keeps no peak. It is what ``mem_get_info`` calls used now, by everything on the device, plus what
    torch's allocator has given back since its own peak; contexts and the collective library's buffers only grow
    during a run.
    """
    module = torch.get_device_module(device.type)
    free, total = module.mem_get_info(device.index)
    stats = module.memory_stats(device.index)
    returned = stats["reserved_bytes.all.peak"] - stats["reserved_bytes.all.current"]
    return reading.model_copy(update={"peak_device_gib": min(total, total - free + returned) / GIB})
