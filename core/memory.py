"""Resetting and sampling device memory; the peaks themselves come from the hook ``collect_memory``."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import torch

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
