"""How fast this rank's device is by itself.

In synchronous training every rank's step takes as long as the slowest one's, so step times name no straggler.
A product without a collective does: it is timed once, between warm-up and the measured window.
"""

from __future__ import annotations

import statistics

import torch

from core.clock import DeviceClock
from core.emulation import is_emulated

_TIMES = 5
_PRODUCTS = 8


def product_time_s(device: torch.device, clock: DeviceClock) -> float:
    """Seconds of a square matrix product, median of a few: bf16, 2048 wide; if the host computes, fp32, 256."""
    on_host = device.type == "cpu" or is_emulated(device.type)
    width, dtype = (256, torch.float32) if on_host else (2048, torch.bfloat16)
    factor = torch.ones(width, width, device=device, dtype=dtype)
    product = torch.mm(factor, factor)
    times_s = []
    for _ in range(_TIMES):
        begin = clock.mark()
        for _ in range(_PRODUCTS):
            torch.mm(factor, factor, out=product)
        end = clock.mark()
        clock.wait(end)
        times_s.append(clock.seconds_between(begin, end) / _PRODUCTS)
    return max(statistics.median(times_s), 1e-9)
