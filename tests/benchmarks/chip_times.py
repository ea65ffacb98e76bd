"""Times the parts of a step on every chip that the plan takes of this node, on all of them at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from core.plugins import load_alone
from schemas.plan import Plan
from tests.benchmarks.at_once import Meet, at_once
from tests.benchmarks.step_parts import AttentionShape, Product, StepParts


class Speed(Protocol):
    """What is asked of a chip; see ``chip_speed``."""

    def product_s(self, product: Product) -> tuple[float, ...]: ...
    def attention_s(self, shape: AttentionShape) -> tuple[float, str]: ...
    def bytes_per_s(self) -> float: ...


@dataclass(frozen=True)
class ChipTimes:
    """What one chip answered; ``device`` is its name."""

    device: str
    products: Mapping[Product, tuple[float, ...]]
    attentions: Mapping[AttentionShape, tuple[float, str]]
    bytes_per_s: float


def alone() -> None:
    """For a chip that has no others to meet."""


def timed(parts: StepParts, chip: Speed, device: str, meet: Meet = alone) -> ChipTimes:
    """Each part once. All chips meet before each, so that none is timed while another one rests."""
    products, attentions = {}, {}
    for product in (*parts.products, parts.head):
        meet()
        products[product] = chip.product_s(product)
    for shape in parts.attentions:
        meet()
        attentions[shape] = chip.attention_s(shape)
    meet()
    return ChipTimes(device, products, attentions, chip.bytes_per_s())


def time_chips(plan: Plan, parts: StepParts, seconds: float) -> list[ChipTimes]:
    """Of the plan's chips on one node, those that this node shows; a single one in this process."""
    planned = plan.topology.chips_per_node
    chips = 1 if planned == 1 else min(planned, visible_chips(plan))
    if chips == 1:
        return [_times(plan, parts, seconds, 0, alone)]
    return at_once(partial(_times_in_worker, plan, parts, seconds), chips)


def visible_chips(plan: Plan) -> int:
    """How many chips of the plan's type this node shows; 1 where it shows none or cannot tell.

    The plugin is asked, which creates no context on a device; chips that workers share are as many as are wanted.
    """
    vendor = load_alone(plan.vendor, plan.vendor_distribution)
    counts = [result.count for result in vendor.probe() if result.chip == plan.chip.name]
    return max(1, sum(plan.topology.chips_per_node if count is None else count for count in counts))


def _times_in_worker(plan: Plan, parts: StepParts, seconds: float, index: int, meet: Meet) -> ChipTimes:
    """In the environment that the run's worker had, before torch is imported."""
    for name, value in plan.launch_env.items():
        os.environ.setdefault(name, value)
    return _times(plan, parts, seconds, index, meet)


def _times(plan: Plan, parts: StepParts, seconds: float, index: int, meet: Meet) -> ChipTimes:
    """By the plan's device of that number, in the plan's math mode, by its vendor's plugin."""
    import torch

    from core import defaults
    from tests.benchmarks.chip_speed import ChipSpeed

    dtypes = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}
    vendor = load_alone(plan.vendor, plan.vendor_distribution, defaults)
    device = vendor.init_device(plan, index)
    dtype = dtypes.get(plan.compute_precision, torch.float32)
    return timed(parts, ChipSpeed(torch.device(device.torch_device), dtype, seconds), device.name, meet)
