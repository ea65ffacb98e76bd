"""Time on the device: marks are queued like any other work and cost no synchronisation."""

from __future__ import annotations

import time
from typing import Any

import torch


class DeviceClock:
    """Marks of one device; on the CPU, where work is synchronous, the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)

    @property
    def asynchronous(self) -> bool:
        """Whether the host may run ahead of the device."""
        return self._module is not None

    def mark(self) -> Any:
        """A point in the device's queue."""
        if self._module is None:
            return time.perf_counter()
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: Any) -> None:
        """Block until the device has passed ``mark``."""
        if self._module is not None:
            mark.synchronize()

    def seconds_between(self, start: Any, end: Any) -> float:
        """Seconds from one passed mark to another."""
        if self._module is None:
            return float(end - start)
        return float(start.elapsed_time(end)) / 1000

    def synchronize(self) -> None:
        """Block until the device has done all that was queued."""
        if self._module is not None:
            self._module.synchronize()
