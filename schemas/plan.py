"""A plan: everything resolved before a device is touched, each value with where it came from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import SCHEMA_VERSION, Name, Schema
from schemas.case import DataSpec, TokenizerSpec
from schemas.chip import ChipSpec, PeakPrecision
from schemas.evaluation import EvaluationSpec
from schemas.hyperparameters import CheckpointFolders, HyperParameters, LoraSpec, Measure, OverrideValue
from schemas.model import DecoderSpec, VisionSpec
from schemas.units import Parallel, Topology


class RankPlace(Schema):
    """What one rank of a model that is split over ranks holds."""

    rank: NonNegativeInt
    tensor: NonNegativeInt
    """Its place among the ranks that share every layer; likewise along the pipeline and among the replicas."""
    pipeline: NonNegativeInt
    data: NonNegativeInt
    layers: tuple[tuple[NonNegativeInt, NonNegativeInt], ...]
    """First and last layer (from 0) of each of its stages."""
    parameters: PositiveInt


class Placement(Schema):
    """Who holds what, and what the pipeline costs."""

    ranks: tuple[RankPlace, ...] = Field(min_length=1)
    bubble_fraction: NonNegativeFloat
    """Share of a step that a pipeline rank waits for others, if all stages take equally long."""
    bubble_source: str


class Plan(Schema):
    """One run, fully resolved. Built by ``core.plan.build``; derived values are computed there only."""

    schema_version: Literal[1] = SCHEMA_VERSION
    case: Name
    case_location: str
    """How a worker finds the case again: an entry-point name or a folder."""
    config: str
    """The config's topology; differs from ``topology`` only when launched on another number of chips."""
    run: Name
    vendor: Name
    vendor_distribution: str
    engine: Name
    chip: ChipSpec
    topology: Topology
    hyper_parameters: HyperParameters
    measure: Measure
    model: DecoderSpec
    tokenizer: TokenizerSpec
    data: DataSpec
    weights: str | None
    vision: VisionSpec | None = None
    lora: LoraSpec | None = None
    evaluation: EvaluationSpec | None = None
    checkpoint: CheckpointFolders = CheckpointFolders()
    fix_hp: dict[str, OverrideValue]
    """What the run and ``--set`` changed relative to the config."""
    remark: str | None
    origins: dict[str, str]
    """Dotted field -> the layer that set it."""

    parallel: Parallel
    global_batch_size: PositiveInt
    """Sequences per optimizer step: LBS × GAS × DP."""
    tokens_per_step: PositiveInt
    placement: Placement | None = None
    """None where no model is split over ranks."""
    compute_precision: PeakPrecision
    """What the matrix products run in; its peak is the MFU's denominator."""
    engine_config: dict[str, JsonValue]
    """The engine's own configuration (DeepSpeed's JSON, Megatron's arguments), derived."""
    launch: tuple[str, ...]
    """The line that starts the workers: on this machine, or on each node of several."""
    launch_env: dict[str, str]
    """Environment that the vendor adds for the workers."""
    scaled_down: bool
    official: bool
    unofficial_reason: str | None
