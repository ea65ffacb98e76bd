"""What a trained model is asked, and how well it answered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from schemas.base import Schema

Benchmark = Literal["MMLU", "MMMU"]
EMBEDDED = "embedded"
"""The data of an evaluation that asked the few questions that come with AccelMark."""

Share = Annotated[float, Field(ge=0, le=1)]


class EvaluationSpec(Schema):
    """A benchmark that follows the training of a run."""

    benchmark: Benchmark
    shots: NonNegativeInt = 0
    """Answered examples before each question."""
    batch_size: PositiveInt = 8
    """Prompts per forward pass and rank."""
    path: str | None = None
    """A folder in the benchmark's published layout; None asks the few embedded questions."""


class Score(Schema):
    """A share of right answers."""

    value: Share
    standard_error: NonNegativeFloat | None = None
    """Of the mean; None where nobody told it, or of a single question."""
    questions: PositiveInt | None = None


class Accuracy(Score):
    """How well a model answered a benchmark; of published results only the value is known."""

    data: str | None = None
    """``embedded``, or the name of the folder that the questions came from."""
    subjects: dict[str, Score] = {}
    shots: NonNegativeInt | None = None
    """Examples before each question, as asked for."""
    mean_shots: NonNegativeFloat | None = None
    """Those that really fitted before the question, on average."""
    cut_prompts: NonNegativeInt | None = None
    """Prompts that had room for fewer than ``shots``."""
    unparsable: Share | None = None
    """Share of the answers that could not be parsed, which count as wrong; None where answers are only scored."""
    skipped: dict[str, PositiveInt] = {}
    """File -> questions that were left out because they are damaged."""
