"""``torch.mlu``."""

import os
import sys
from types import SimpleNamespace

from torch_mlu import emulated_device

FALLS_BACK = os.environ.get("ENABLE_FALLBACK_TO_CPU", "1").upper() not in ("0", "OFF", "FALSE")
CHIP = emulated_device.Chip(
    device_type="mlu",
    device_name="MLU590-M9",
    memory_gib=80,
    collectives="cncl",
    capability=(5, 0),
    visible_variable="MLU_VISIBLE_DEVICES",
    fallback_warning="is not currently supported on MLU and will fall back to run on the CPU."
    if FALLS_BACK
    else "",
)
cnpx = SimpleNamespace(range_push=lambda message: None, range_pop=lambda: None)
"""Ranges of the vendor's profiler, which DeepSpeed marks."""


def install() -> None:
    """Take torch's slot for it."""
    emulated_device.install(sys.modules[__name__], CHIP)
