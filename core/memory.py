"""Resetting, sampling and reading device memory. What ``read_peaks`` finds is core's ``collect_memory``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from schemas.chip import Device, MemoryReading
from schemas.units import GIB

_PROCESS_STATUS = Path("/proc/self/status")
_RESET_PROCESS_PEAK = Path("/proc/self/clear_refs")


def reset_peaks(device: torch.device) -> bool:
    """Forget the peaks so far, so that those of set-up and warm-up are not reported; False where nothing can.

    On the CPU that is the kernel's mark of the largest resident set (proc_pid_clear_refs(5)); where it cannot be
    reset, the peak is the process's own.
    """
    if device.type == "cpu":
        try:
            _RESET_PROCESS_PEAK.write_text("5", encoding="ascii")
        except OSError:
            return False
        return True
    module = torch.get_device_module(device)
    if not hasattr(module, "reset_peak_memory_stats"):
        return False
    module.reset_peak_memory_stats(device)
    return True


def allocated_gib(device: torch.device) -> float | None:
    """Device memory that tensors hold now (on the CPU: the process's resident set), GiB."""
    if device.type == "cpu":
        return float(psutil.Process().memory_info().rss) / GIB
    module = torch.get_device_module(device)
    return float(module.memory_allocated(device)) / GIB if hasattr(module, "memory_allocated") else None


def read_peaks(device: Device) -> MemoryReading:
    """Peaks since the last reset, and the capacity, as far as torch's module of the device tells them.

    That is whatever counts as CUDA's does. Of CPU tensors torch keeps no statistics: there it is the process's
    resident set against the machine's memory, which counts the interpreter and libraries, too.
    """
    if device.type == "cpu":
        return MemoryReading(
            peak_allocated_gib=_peak_resident_gib(),
            peak_reserved_gib=None,
            peak_device_gib=None,
            capacity_gib=float(psutil.virtual_memory().total) / GIB,
        )
    module = torch.get_device_module(device.type)
    stats = module.memory_stats(device.index) if hasattr(module, "memory_stats") else {}
    free, total = module.mem_get_info(device.index) if hasattr(module, "mem_get_info") else (None, None)
    allocated, reserved = stats.get("allocated_bytes.all.peak"), stats.get("reserved_bytes.all.peak")
    return MemoryReading(
        peak_allocated_gib=None if allocated is None else allocated / GIB,
        peak_reserved_gib=None if reserved is None else reserved / GIB,
        peak_device_gib=_device_peak_gib(stats, free, total),
        capacity_gib=None if total is None else total / GIB,
        allocation_retries=stats.get("num_alloc_retries"),
        oom_count=stats.get("num_ooms"),
    )


def _device_peak_gib(stats: dict[str, Any], free: int | None, total: int | None) -> float | None:
    """Peak use of the device by everything on it, of which the driver keeps none; None where it cannot be told.

    It is what ``mem_get_info`` calls used now, plus what torch's allocator has given back since its own peak;
    contexts and the collective library's buffers only grow during a run.
    """
    if free is None or total is None or "reserved_bytes.all.current" not in stats:
        return None
    returned = stats["reserved_bytes.all.peak"] - stats["reserved_bytes.all.current"]
    return float(min(total, total - free + returned)) / GIB


def _peak_resident_gib() -> float:
    """Highest resident set of this process, GiB.

    Linux keeps it as ``VmHWM`` (proc_pid_status(5)), since the process began or since ``5`` was last written to
    ``/proc/self/clear_refs``. Elsewhere it is ``ru_maxrss`` of getrusage(2), which nothing resets.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _PROCESS_STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 / GIB if found else _from_getrusage()


def _from_getrusage() -> float:
    import resource  # Windows lacks it, and this module has to load there

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
