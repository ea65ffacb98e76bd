"""Plans of the small case for any vendor's chip. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core import plan, plugins
from core.cases import Config, LoadedCase
from core.plugins import Vendor
from core.testing.case import CASE
from schemas.case import HardwareConfig, Run
from schemas.hyperparameters import OverrideValue
from schemas.plan import Plan
from schemas.units import Topology

FOLDER = Path(__file__).parent / "case"
GLOBAL_BATCH = 8
"""Sequences a step, however many ranks share them: what makes losses comparable."""
POSITIONS = ("rope", "alibi")
"""Kinds of positions, on which it depends what attends."""


def small_plan(
    vendor: Vendor, chip: str, ranks: int = 1, engine: str = "torch", settings: Mapping[str, OverrideValue] = {}
) -> Plan:
    """The small case's plan, with ``settings`` over its own."""
    return plan.build(small_request(vendor, chip, ranks, engine, settings))


def small_request(
    vendor: Vendor, chip: str, ranks: int = 1, engine: str = "torch", settings: Mapping[str, OverrideValue] = {}
) -> plan.Request:
    """What ``small_plan`` is made of."""
    replicas = ranks // int(settings.get("tensor_parallel", 1) or 1)
    gas = CASE.hyper_parameters.gradient_accumulation_steps
    run = Run(id=str(settings.get("precision", "fp32")))
    config = HardwareConfig(
        vendor=vendor.name,
        topology=Topology(chip=chip, nodes=1, chips_per_node=ranks),
        engine=engine,
        defaults={"local_batch_size": GLOBAL_BATCH // gas // replicas, **settings},
        runs=(run,),
    )
    own = Config(config, "core.testing")
    # Not resolved as workers do: that asks every vendor, and here one alone is judged.
    loaded = LoadedCase(CASE, str(FOLDER), FOLDER, (own,), {})
    return plan.Request(loaded, own, run, vendor)


def tuned(request: plan.Request) -> plan.Request:
    """The same as a tuned run."""
    return replace(request, run=request.run.model_copy(update={"tuned": True}))


def tuned_plan(vendor: Vendor, chip: str, position: str = POSITIONS[0]) -> Plan:
    """The small case's plan on one chip, as a tuned run in bf16."""
    settings: dict[str, OverrideValue] = {"precision": "bf16", "model.position": position}
    return plan.build(tuned(small_request(vendor, chip, settings=settings)))


def reference_chip() -> tuple[Vendor, str] | None:
    """The installed chip whose losses are the measure, and its vendor; None without any."""
    for found in plugins.discover():
        for chip in found.vendor.chips if found.vendor else ():
            if chip.reference and found.vendor:
                return found.vendor, chip.name
    return None
