"""What each engine can do: what the plan checks against, before any framework is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    autocast_dtypes: tuple[Literal["bf16", "fp16"], ...] = ("bf16", "fp16")
    losses: tuple[str, ...] = ("full", "chunked")
    z_loss: bool = True
    sees_images: bool = True
    """Whether it trains models that take more than token ids and labels."""
    trains_adapters: bool = True
    """Whether it trains LoRA adapters while the model's own weights stay as they are."""
    document_masks: bool = True
    """Whether it can keep documents apart that share a sequence."""
    vendor_attention: bool = True
    """Whether it calls a fused attention of the vendor's own, which knows all heads of the model."""
    evaluates: bool = True
    """Whether it can run the trained model without training it."""
    extra: str = "train"
    """The extra of this distribution that installs ``packages``."""
    model_builder: str = "core.models.factory:build_decoder"
    """``module:callable``, called with the plan and the pipeline stage: what core builds for it."""


ENGINES = (
    EngineSpec(
        name="torch",
        implementation="core.engines.torch_engine:TorchEngine",
        packages=("torch",),
        precisions=("fp32", "tf32", "amp", "fp16", "bf16", "fp8"),
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
        extra="deepspeed",
    ),
    EngineSpec(
        name="megatron",
        implementation="core.engines.megatron.engine:MegatronEngine",
        packages=("torch", "megatron.core"),
        precisions=("fp32", "tf32", "amp", "bf16"),
        zero_stages=(0, 1),  # 1 is its distributed optimizer
        optimizer_states=("fp32",),
        offloads=("none",),
        model_parallel=True,
        autocast_dtypes=("bf16",),
        losses=("full",),
        z_loss=False,
        sees_images=False,
        trains_adapters=False,
        document_masks=False,
        vendor_attention=False,
        evaluates=False,
        extra="megatron",
        model_builder="core.engines.megatron.model:build_stage",
    ),
)


def engine_spec(name: str) -> EngineSpec:
    """The engine called ``name``; UsageError lists the known ones."""
    for engine in ENGINES:
        if engine.name == name:
            return engine
    known = ", ".join(engine.name for engine in ENGINES)
    raise UsageError(f"unknown engine {name!r}", f"use one of: {known}")
