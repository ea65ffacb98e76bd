"""MetaX's C-series cards: memory, and the names that driver and torch give them.

MetaX publishes no rates that could be verified: FlagPerf's sheets leave them out, third parties write 240 or 280
TFLOP/s in 16 bits, and one has measured 275 on a C550, which 240 cannot be the peak of. A user who has a datasheet
states them in a chip file of his own (see docs/vendors.md).
"""

from __future__ import annotations

import re
from typing import get_args

from schemas.chip import ChipSpec, Peak, PeakPrecision

_NO_PEAK = "MetaX publishes no rate that could be verified; state your datasheet's with ACCELMARK_CHIPS"
_MEMORY = {
    "C500": "published report of llama2_70b on C500; mx-smi shows 65536 MiB",
    "C550": "FlagPerf's sheets name the C550 64G; mx-smi shows 65536 MiB",
}

CHIPS = tuple(
    ChipSpec(
        name=name,
        vendor="metax",
        memory_gb=64,
        memory_source=source,
        peaks=tuple(Peak(precision=p, tflops=None, source=_NO_PEAK) for p in get_args(PeakPrecision)),
    )
    for name, source in _MEMORY.items()
)


def match(device_name: str) -> str | None:
    """The chip that driver or torch call ``device_name`` (``MetaX C500``, older ``MXC500``); None for another."""
    found = re.fullmatch(r"(?:MetaX |MX)?(C\d+)", device_name)
    return found[1] if found and found[1] in _MEMORY else None
