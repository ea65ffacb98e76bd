"""A plan of any number of ranks that has an MFU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schemas.plan import Plan


@pytest.fixture
def plan_of(make_plan: Callable[..., Plan]) -> Callable[[int], Plan]:
    """16384 tokens of each rank and step; warm-up of two steps."""

    def make(ranks: int) -> Plan:
        topology = f"X1x1x{ranks}" if ranks <= 8 else f"X1x{ranks // 8}x8"
        return make_plan(
            topology=topology, run={"fix_hp": {"measure.warmup_steps": 2, "data.generated_sequences": 2048}}
        )

    return make
