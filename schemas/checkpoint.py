"""What a checkpoint's folder says about itself, in ``checkpoint.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from schemas.base import SCHEMA_VERSION, Schema
from schemas.plan import Plan

Part = Literal["weights", "main_weights", "exp_avg", "exp_avg_sq"]
"""A tensor for every weight, under the weight's released name: the weight itself, its fp32 main weight where the
parameters have 16 bits, and Adam's two moments."""


class LossScale(Schema):
    """Of a run in fp16."""

    scale: PositiveFloat
    clean_steps: NonNegativeInt
    """Steps without an overflow since it changed last."""


class Checkpoint(Schema):
    """Everything that training needs to go on, beside the tensors. Written last: without it, nothing is whole."""

    schema_version: Literal[1] = SCHEMA_VERSION
    step: PositiveInt
    """The last optimizer step that was taken; the data goes on after it."""
    updates: NonNegativeInt
    """Updates that Adam counts: fewer than steps where a loss scaler skipped some."""
    loss_scale: LossScale | None
    weights: Literal["random", "pretrained"]
    """What training began with."""
    data_manifest_sha256: str
    parts: tuple[Part, ...] = Field(min_length=1)
    plan: Plan
    """Of the run that saved it."""
