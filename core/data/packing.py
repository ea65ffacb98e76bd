"""Documents packed into sequences of one length: no token is lost, and the end of the last sequence is padded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.data.order import SampleOrder
from core.data.source import IGNORED_LABEL, DataFacts, MicroBatch

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stream:
    """Document after document, token by token."""

    ids: Ids
    labels: Ids
    """The token itself where it is trained, else ``IGNORED_LABEL``; not shifted."""
    documents: Ids
    """The number of each token's document."""
    pad_id: int


class PackedReader:
    """Batches of one data parallel rank; a ``core.data.source.DataSource``.

    Sample ``i`` is ``ids[i*S : (i+1)*S]`` with the labels one further, so that documents run on across samples.
    The last sample of the stream, and samples that an epoch's last global batch lacks, are filled with padding.
    """

    own_process = False

    def __init__(  # noqa: PLR0913 - the data parallel layout is four numbers
        self,
        stream: Stream,
        *,
        name: str,
        sequence_length: int,
        document_mask: bool,
        local_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        """``document_mask`` adds ``document_ids`` to the batches, which keep documents apart."""
        self._length, self._mask, self._pad_id = sequence_length, document_mask, stream.pad_id
        self._tokens = len(stream.ids)
        self._samples = -(-self._tokens // sequence_length)
        padding = self._samples * sequence_length + 1 - self._tokens
        self._ids = np.append(stream.ids, np.full(padding, stream.pad_id))
        self._labels = np.append(stream.labels, np.full(padding, IGNORED_LABEL))
        self._documents = np.append(stream.documents, np.full(padding, -1))
        self._order = SampleOrder(self._samples, local_batch_size, rank, world_size, seed)
        digest = hashlib.sha256(stream.ids.tobytes() + stream.labels.tobytes())
        self._facts = DataFacts(name, digest.hexdigest(), self._samples, self._tokens)

    @property
    def facts(self) -> DataFacts:
        """What the record says of it."""
        return self._facts

    def steps_per_epoch(self, gradient_accumulation_steps: int) -> int:
        """Optimizer steps in an epoch; the last one may be partly padding."""
        return self._order.steps_per_epoch(gradient_accumulation_steps)

    def epochs_at(self, step: int, gradient_accumulation_steps: int) -> int:
        """Whole passes over the data set before ``step`` (from 0)."""
        return step // self.steps_per_epoch(gradient_accumulation_steps)

    def batch(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> MicroBatch:
        """``input_ids``, ``labels`` and, with a document mask, ``document_ids``, each int64 ``[LBS, S]``."""
        samples = self._order.samples(step, micro_step, gradient_accumulation_steps)
        shape = (self._order.local_batch_size, self._length)
        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.full(shape, self._pad_id, dtype=np.int64),
            "labels": np.full(shape, IGNORED_LABEL, dtype=np.int64),
        }
        if self._mask:
            arrays["document_ids"] = np.full(shape, -1, dtype=np.int64)
        lengths: list[int] = []
        for row, sample in enumerate(samples):
            here = slice(sample * self._length, (sample + 1) * self._length)
            one_further = slice(here.start + 1, here.stop + 1)
            arrays["input_ids"][row] = self._ids[here]
            arrays["labels"][row] = self._labels[one_further]
            real = min(here.stop, self._tokens) - here.start
            if self._mask:
                arrays["document_ids"][row] = self._documents[here]
                _, tokens = np.unique(arrays["document_ids"][row, :real], return_counts=True)
                lengths += tokens.tolist()
            else:
                lengths.append(real)
        padded = shape[0] * shape[1] - sum(lengths)
        return MicroBatch(arrays, padded_tokens=padded, sequence_lengths=tuple(lengths))
