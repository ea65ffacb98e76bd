"""What each engine can do: what the plan checks against, before any framework is imported."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import UsageError
from schemas.hyperparameters import OptimizerState, Precision


@dataclass(frozen=True)
class EngineSpec:
    """One engine. To add one, write its module after ``base.Engine`` and list it in ``ENGINES``."""

    name: str
    implementation: str
    """``module:class`` of a ``core.engines.base.Engine``, imported in a worker only."""
    packages: tuple[str, ...]
    """Import names that must be installed."""
    precisions: tuple[Precision, ...]
    zero_stages: tuple[int, ...]
    optimizer_states: tuple[OptimizerState, ...]
    offloads: tuple[str, ...]
    model_parallel: bool
    """Whether it splits a model over ranks (TP, PP)."""


ENGINES = (
    EngineSpec(
        name="torch",
        implementation="core.engines.torch_engine:TorchEngine",
        packages=("torch",),
        precisions=("fp32", "tf32", "amp", "fp16", "bf16"),
        zero_stages=(0, 2, 3),  # 0 replicates (DDP); FSDP2 always shards gradients too
        optimizer_states=("fp32", "bf16_stochastic"),
        offloads=("none",),
        model_parallel=False,
    ),
    EngineSpec(
        name="deepspeed",
        implementation="core.engines.deepspeed_engine:DeepSpeedEngine",
        packages=("torch", "deepspeed"),
        precisions=("fp32", "tf32", "amp", "fp16", "bf16"),
        zero_stages=(0, 1, 2, 3),
        optimizer_states=("fp32",),
        offloads=("none", "optimizer"),
        model_parallel=False,
    ),
)


def engine_spec(name: str) -> EngineSpec:
    """The engine called ``name``; UsageError lists the known ones."""
    for engine in ENGINES:
        if engine.name == name:
            return engine
    known = ", ".join(engine.name for engine in ENGINES)
    raise UsageError(f"unknown engine {name!r}", f"use one of: {known}")
