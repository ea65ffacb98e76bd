"""What plan checks look at, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.engines.catalog import EngineSpec, engine_spec
from schemas.case import DataFormat
from schemas.chip import ChipSpec
from schemas.hyperparameters import HyperParameters, OverrideValue
from schemas.model import DecoderSpec
from schemas.units import PipelineLayers, Topology


@dataclass(frozen=True)
class Proposal:
    """A plan that is not one yet."""

    engine: str
    chip: ChipSpec
    topology: Topology
    hp: HyperParameters
    model: DecoderSpec
    generated_sequences: int | None
    """Length of the generated data; None when the user's own is read."""
    data_format: DataFormat = "tokens"
    adapters: bool = False
    """Whether LoRA adapters are trained, and nothing else."""

    @property
    def spec(self) -> EngineSpec:
        """What the engine can do."""
        return engine_spec(self.engine)

    @property
    def data_parallel(self) -> int:
        """DP, rounded down where TP × PP does not divide the world size."""
        return self.topology.world_size // (self.hp.tensor_parallel * self.hp.pipeline_parallel)

    @property
    def global_batch_size(self) -> int:
        """GBS = LBS × GAS × DP."""
        return self.hp.local_batch_size * self.hp.gradient_accumulation_steps * self.data_parallel


@dataclass(frozen=True)
class Refusal:
    """Why a plan cannot be, and the change that brings the nearest one that can."""

    reason: str
    change: dict[str, OverrideValue | PipelineLayers]


Check = Callable[[Proposal], Refusal | None]
