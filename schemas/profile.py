"""Where the time of a step goes, from a trace."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from schemas.base import Schema

Share = Literal["matrix_products", "attention", "loss", "memory_bound", "optimizer", "communication", "host"]
"""What the device does: ``loss`` is the output head with the cross-entropy, ``memory_bound`` all other kernels,
``communication`` only what no other kernel hides, ``host`` the time in which the device has nothing to do."""


class Profile(Schema):
    """Of rank 0, over steps that were traced after the measured window. Tracing makes them slower than those."""

    steps: PositiveInt
    step_time_s: PositiveFloat
    seconds: dict[Share, NonNegativeFloat]
    """Seconds of a step by what the device did; they add up to ``step_time_s``."""
    trace: str
    """The trace in the run's folder, for chrome://tracing or ui.perfetto.dev."""
