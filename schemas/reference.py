"""A reference curve: what a run's losses and gradient norms are held against (是否精度对齐)."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator
from typing_extensions import Self

from schemas.base import SCHEMA_VERSION, Name, RecordId, Schema
from schemas.plan import Plan


class ReferenceCurve(Schema):
    """The curves of one trusted run, and everything that another run must share to be held against them.

    Seed, global batch size, sequence length and model are the plan's. It lives with its case, in
    ``references/<id>.json``.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    id: Name
    record: RecordId
    """The run that it was made from."""
    data: str
    """``generated`` or the data set's name."""
    data_manifest_sha256: str
    weights: Literal["random", "pretrained"]
    weights_sha256: str
    """Identifies the initial weights; see ``core.models.fingerprint``."""
    losses: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Mean cross-entropy per label token of the global batch, nats; one value a step, from step 1."""
    gradient_norms: tuple[PositiveFloat, ...]
    """Global norm before clipping; one value a step, from step 1."""
    environment: dict[str, str]
    math_mode: dict[str, str]
    plan: Plan

    @model_validator(mode="after")
    def _both_curves_are_whole(self) -> Self:
        if len(self.losses) != len(self.gradient_norms):
            raise ValueError(f"{len(self.losses)} losses and {len(self.gradient_norms)} gradient norms")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of the curves."""
        return len(self.losses)

    def sha256(self) -> str:
        """Hash of curves, data and weights (canonical JSON), which an alignment keeps.

        Without the plan, whose schema grows.
        """
        content = {"losses", "gradient_norms", "data_manifest_sha256", "weights_sha256"}
        text = json.dumps(self.model_dump(mode="json", include=content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
