"""``collect_memory`` against allocations of a known size, and what running out of memory does."""

from __future__ import annotations

import gc

import torch

from core import memory
from core.failure import Context, classify
from core.testing.check import DeviceScene, FailedError, NotRunError
from core.testing.precision_checks import FP32_ERROR, product_errors
from schemas.units import GIB

BLOCK_GIB = 0.5
SLACK_GIB = 0.1
"""Allocators round up, and on the CPU libraries allocate, too."""
TOO_MUCH_BYTES = 1 << 50


def peak_counts_allocations(scene: DeviceScene) -> str:
    """A block of a known size raises the peak by that size."""
    device = scene.torch_device
    gc.collect()
    _require_reset(device)
    before = _peak_gib(scene)
    block = _block(device)
    after = _peak_gib(scene)
    del block
    if abs(after - before - BLOCK_GIB) > SLACK_GIB:
        raise FailedError(
            f"a block of {BLOCK_GIB} GiB changes peak_allocated_gib from {before:.3f} to {after:.3f}"
        )
    reading = scene.vendor.collect_memory(scene.device)
    capacity = reading.capacity_gib
    for name in ("peak_allocated_gib", "peak_reserved_gib", "peak_device_gib"):
        value = getattr(reading, name)
        if value is not None and capacity is not None and value > capacity * 1.01:
            raise FailedError(f"{name} {value:.2f} is over capacity_gib {capacity:.2f}; check the units")
    if reading.peak_reserved_gib is not None and reading.peak_reserved_gib < after - SLACK_GIB:
        raise FailedError(
            f"peak_reserved_gib {reading.peak_reserved_gib:.3f} is under peak_allocated_gib {after:.3f}"
        )
    return f"{BLOCK_GIB} GiB raised the peak by {after - before:.3f}"


def peak_is_reset(scene: DeviceScene) -> str:
    """After the reset that follows warm-up, the peak no longer holds what was freed before."""
    device = scene.torch_device
    block = _block(device)
    high = _peak_gib(scene)
    del block
    _require_reset(device)
    low = _peak_gib(scene)
    if low > high - BLOCK_GIB + SLACK_GIB:
        raise FailedError(
            f"peak_allocated_gib is {low:.3f} after {BLOCK_GIB} GiB were freed and the peaks reset, it was "
            f"{high:.3f}: read what torch's reset_peak_memory_stats resets"
        )
    return f"{high:.3f} to {low:.3f} GiB"


def survives_out_of_memory(scene: DeviceScene) -> str:
    """An allocation that cannot be is told as out of memory, is counted, and leaves the device usable."""
    device = scene.torch_device
    count = scene.vendor.collect_memory(scene.device).oom_count
    try:
        torch.empty(TOO_MUCH_BYTES, dtype=torch.uint8, device=device)
    except Exception as error:
        status, reason = classify(error, Context(scene.vendor.name))
    else:
        raise FailedError(f"a tensor of {TOO_MUCH_BYTES >> 40} TiB was allocated")
    if status != "oom":
        raise FailedError(f"running out of memory ends a run as {status!r}, not oom: {reason}")
    later = scene.vendor.collect_memory(scene.device).oom_count
    if count is not None and later is not None and later <= count:
        raise FailedError(f"oom_count is {later} after running out of memory, it was {count}")
    if max(product_errors(device).values()) > FP32_ERROR:
        raise FailedError("products are wrong after running out of memory")
    return reason[:160]


def _peak_gib(scene: DeviceScene) -> float:
    peak = scene.vendor.collect_memory(scene.device).peak_allocated_gib
    if peak is None:
        raise NotRunError("collect_memory tells no peak_allocated_gib on this device")
    return peak


def _require_reset(device: torch.device) -> None:
    if not memory.reset_peaks(device):
        raise NotRunError(f"nothing here resets the memory peak of {device.type}")


def _block(device: torch.device) -> torch.Tensor:
    """Written to, since a CPU's memory counts when it is touched."""
    block = torch.ones(int(BLOCK_GIB * GIB), dtype=torch.uint8, device=device)
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return block
