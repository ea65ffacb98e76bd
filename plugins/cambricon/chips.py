"""Cambricon's training cards, one entry for each device that torch_mlu counts, and the names they have.

``MLU`` stands for the chip of a published sheet that does not say which one it was: any MLU runs its configs, and
none of them gets an MFU.
"""

from __future__ import annotations

import re
from typing import get_args

from schemas.chip import ChipSpec, Peak, PeakPrecision

_MLU370_X8 = (
    "Cambricon's product page of the MLU370-X8 (32 fp32, 96 fp16, 96 bf16, 48 GB), a card of two chips that "
    "torch_mlu counts as two devices: halved"
)
_MLU370_X8_RATES: dict[PeakPrecision, float] = {"fp32": 16, "fp16": 48, "bf16": 48}
_MLU590 = "Cambricon publishes no rates of the MLU590; state your datasheet's with ACCELMARK_CHIPS"
_MLU590_MEMORY = "differs between models: cnmon shows 80 GiB and 96 GiB ones"
_MLU = "the published sheet of llava1.5_13b calls its chip MLU and does not say which one"


def _unknown(why: str) -> tuple[Peak, ...]:
    return tuple(Peak(precision=p, tflops=None, source=why) for p in get_args(PeakPrecision))


def _of_mlu370(precision: PeakPrecision) -> Peak:
    tflops = _MLU370_X8_RATES.get(precision)
    source = _MLU370_X8 if tflops else f"no {precision} rate is published"
    return Peak(precision=precision, tflops=tflops, source=source)


CHIPS = (
    ChipSpec(
        name="MLU370-X8",
        vendor="cambricon",
        memory_gb=24,
        memory_source=_MLU370_X8,
        peaks=tuple(_of_mlu370(precision) for precision in get_args(PeakPrecision)),
    ),
    ChipSpec(
        name="MLU590",
        vendor="cambricon",
        memory_gb=None,
        memory_source=_MLU590_MEMORY,
        peaks=_unknown(_MLU590),
    ),
    ChipSpec(name="MLU", vendor="cambricon", memory_gb=None, memory_source=_MLU, peaks=_unknown(_MLU)),
)

_NAMES = {
    "MLU370-X8": r"MLU370-?X8",
    "MLU590": r"MLU590(-\w+)?",
    "MLU": r"MLU\d+.*",
}


def match(device_name: str) -> str | None:
    """The chip that the driver calls ``device_name`` (``MLU590-M9``); None for one without an entry of its own."""
    return next((chip for chip, name in _NAMES.items() if chip != "MLU" and re.fullmatch(name, device_name)), None)


def fits(chip: str, device_name: str) -> bool:
    """Whether a device that torch_mlu calls ``device_name`` can be ``chip``; older ones tell the family alone."""
    if chip == "MLU370-X8" and device_name == "MLU370":
        return True
    return chip in _NAMES and re.fullmatch(_NAMES[chip], device_name) is not None
