"""Moore Threads' training cards: peaks, memory, and the names that driver and torch_musa give them.

The S80, S3000 and M1000 are not here: MCCL, torch's collective library for these chips, is not provided for them.
"""

from __future__ import annotations

import re

from schemas.chip import ChipSpec, Peak, PeakPrecision

_PRECISIONS: tuple[PeakPrecision, ...] = ("fp32", "tf32", "fp16", "bf16", "fp8")

_S4000 = (
    "Moore Threads' announcement of the MTT S4000, December 2023, as the press reported it (25 fp32, 50 tf32, 100 "
    "fp16 and bf16, 768 GB/s); later figures of the vendor's are 49 and 98"
)
_S5000 = "Moore Threads on the MTT S5000, February 2026, as the press reported it: 80 GB, 1.6 TB/s"
_S5000_PEAK = "Moore Threads gives `up to 1 PFLOPS` for the MTT S5000 without saying in which precision"
_S4000_RATES: tuple[float | None, ...] = (25, 50, 100, 100, None)

CHIPS = (
    ChipSpec(
        name="S4000",
        vendor="torch_musa",
        memory_gb=48,
        memory_source=_S4000,
        peaks=tuple(
            Peak(precision=p, tflops=tflops, source=_S4000 if tflops else f"no {p} rate is published")
            for p, tflops in zip(_PRECISIONS, _S4000_RATES, strict=True)
        ),
    ),
    ChipSpec(
        name="S5000",
        vendor="torch_musa",
        memory_gb=80,
        memory_source=_S5000,
        peaks=tuple(Peak(precision=p, tflops=None, source=_S5000_PEAK) for p in _PRECISIONS),
    ),
)


def match(device_name: str) -> str | None:
    """The chip that driver or torch call ``device_name`` (``MTT S4000``); None for one not in ``CHIPS``."""
    found = re.fullmatch(r"(?:MTT )?(S\d+)", device_name)
    return found[1] if found and found[1] in {chip.name for chip in CHIPS} else None
