"""The benchmarks that a run can end with, by name; each is imported only where it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from schemas.evaluation import Accuracy, Benchmark, EvaluationSpec
from schemas.model import VisionSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

Progress = Callable[[int, int], None]
"""Called as questions are answered: done and in all, of this rank. A rank that is silent counts as hanging."""


@dataclass(frozen=True)
class Respondent:
    """The model that is asked, as one rank has it. All ranks are asked together, each its share of the questions.

    Where the model is sharded over the ranks, a forward pass is a collective: each rank must make as many.
    """

    model: nn.Module
    """In eval mode and called without gradients: ``model(input_ids=...)`` gives logits ``[B, S, V]``."""
    device: torch.device
    tokenizer: Path
    """A SentencePiece model, or a folder that holds ``tokenizer.model``."""
    vocab_size: int
    """Of the model; the tokenizer's ids must lie below it."""
    max_length: int
    """Tokens of the longest prompt."""
    vision: VisionSpec | None = None
    """The tower of a model that takes ``pixel_values`` and ``image_positions``, too."""
    rank: int = 0
    world_size: int = 1


class Evaluator(Protocol):
    """What the module of a benchmark holds."""

    def make(self, spec: EvaluationSpec) -> None:
        """Build what the cache lacks, the embedded questions; ``UsageError`` for what cannot be asked.

        Called on one process a node before training.
        """

    def evaluate(self, spec: EvaluationSpec, respondent: Respondent, progress: Progress) -> Accuracy:
        """Ask all ranks' questions; every rank returns the accuracy over all of them."""


EVALUATORS: Final[Mapping[Benchmark, str]] = {
    "MMLU": "core.evaluate.mmlu",
    "MMMU": "core.evaluate.mmmu.benchmark",
}
"""Benchmark -> module with the functions of ``Evaluator``."""


def evaluator(benchmark: Benchmark) -> Evaluator:
    """The module that asks ``benchmark``."""
    return cast(Evaluator, importlib.import_module(EVALUATORS[benchmark]))
