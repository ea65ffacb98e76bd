"""A plan: everything resolved before a device is touched, each value with where it came from."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue, PositiveInt

from schemas.base import SCHEMA_VERSION, Name, Schema
from schemas.case import DataSpec, TokenizerSpec
from schemas.chip import ChipSpec, PeakPrecision
from schemas.hyperparameters import HyperParameters, Measure, OverrideValue
from schemas.model import DecoderSpec
from schemas.units import Parallel, Topology


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
    fix_hp: dict[str, OverrideValue]
    """What the run and ``--set`` changed relative to the config."""
    remark: str | None
    origins: dict[str, str]
    """Dotted field -> the layer that set it."""

    parallel: Parallel
    global_batch_size: PositiveInt
    """Sequences per optimizer step: LBS × GAS × DP."""
    tokens_per_step: PositiveInt
    compute_precision: PeakPrecision
    """What the matrix products run in; its peak is the MFU's denominator."""
    engine_config: dict[str, JsonValue]
    """The engine's own configuration (DeepSpeed's JSON), derived."""
    launch: tuple[str, ...]
    """The line that starts the workers: on this machine, or on each node of several."""
    launch_env: dict[str, str]
    """Environment that the vendor adds for the workers."""
    scaled_down: bool
    official: bool
    unofficial_reason: str | None
