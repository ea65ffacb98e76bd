"""What a data set gives the training loop, whatever it holds: numbered batches of named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

IGNORED_LABEL = -100
"""Positions with this label count in no loss."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MicroBatch:
    """The keyword arguments of one call of the model's ``forward``, on the host."""

    arrays: Mapping[str, Array]
    """At least ``input_ids`` and ``labels``, int64 ``[B, S]``; ``labels[b, i]`` is what position i has to predict.
    Every array is the micro-batch's own: it may be handed over without a copy."""
    padded_tokens: int = 0
    """Padding of ``input_ids`` that is computed with. Ignored labels do not tell: prompts have them, too."""
    images: int = 0
    """Images of the data; one that only keeps ranks together is none."""
    sequence_lengths: tuple[int, ...] | None = None
    """Real tokens of each sequence, where they are not all as long as a row of ``input_ids``. Documents of a row
    that do not see each other are a sequence each."""

    @property
    def label_tokens(self) -> int:
        """Labels that count in the loss."""
        return int(np.count_nonzero(self.arrays["labels"] != IGNORED_LABEL))

    @property
    def real_tokens(self) -> int:
        """Positions that hold a token of the data."""
        if self.sequence_lengths is not None:
            return sum(self.sequence_lengths)
        return self.arrays["input_ids"].size - self.padded_tokens

    @property
    def squared_lengths(self) -> int:
        """Sum of the sequences' squared lengths, which the products of attention go with."""
        rows, length = self.arrays["input_ids"].shape
        lengths = (length,) * rows if self.sequence_lengths is None else self.sequence_lengths
        return sum(real * real for real in lengths)


@dataclass(frozen=True)
class DataFacts:
    """What a record says of the data."""

    name: str
    """``generated`` or the data set's name."""
    sha256: str
    """Identifies the data: two runs with the same hash and seed see the same batches."""
    sequences: int
    """Samples in one epoch."""
    tokens: int | None
    """Real tokens in one epoch; None where counting them would take long."""


class DataSource(Protocol):
    """The batches of one data parallel rank, a pure function of the step. All numbers count from 0."""

    own_process: bool
    """Whether a batch takes so much Python that a process of its own makes them."""

    @property
    def facts(self) -> DataFacts:
        """What the record says of it."""

    def steps_per_epoch(self, gradient_accumulation_steps: int) -> int:
        """Optimizer steps in an epoch; ``UsageError`` when the data set does not fill one global batch."""

    def epochs_at(self, step: int, gradient_accumulation_steps: int) -> int:
        """Whole passes over the data set before ``step``."""

    def batch(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> MicroBatch:
        """This rank's micro-batch ``micro_step`` of ``step``; called in order, beside the main thread."""
