"""Reading a prepared data set: which tokens each rank sees at each step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.data.manifest import Manifest
from core.data.order import permutation
from core.data.source import DataFacts, MicroBatch
from core.errors import UsageError

Tokens = npt.NDArray[np.int64]


class TokenReader:
    """Batches of one data parallel rank, a pure function of the step.

    Sample ``i`` is ``tokens[i*S : i*S + S + 1]``: S inputs, and the labels one further; documents run on across
    samples (packed, no padding). An epoch is a permutation of all samples. Step ``k`` of an epoch takes samples
    ``[k*GBS, (k+1)*GBS)`` of it, laid out as ``[GAS, DP, LBS]``, so that the global batch is the same set in
    whatever way it is split; samples left over at the end of an epoch are dropped.
    """

    own_process = False

    def __init__(  # noqa: PLR0913 - the data parallel layout is four numbers
        self,
        folder: Path,
        sequence_length: int,
        *,
        rank: int,
        world_size: int,
        local_batch_size: int,
        seed: int,
        verify: bool,
    ) -> None:
        """Open the data set in ``folder``; ``rank`` and ``world_size`` count data parallel ranks of all nodes.

        ``verify`` hashes the whole token file; ask for it on one rank a node. The file's length is always checked.
        Raises ``UsageError`` for a folder that holds no data set, or a damaged one.
        """
        self.manifest = Manifest.read(folder)
        if verify:
            self.manifest.verify(folder)
        else:
            self.manifest.verify_size(folder)
        self.sequence_length = sequence_length
        self.local_batch_size = local_batch_size
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._tokens = np.memmap(
            folder / self.manifest.token_file, dtype=np.dtype(self.manifest.dtype).newbyteorder("<"), mode="r"
        )
        self._order: tuple[int, Tokens] | None = None

    @property
    def facts(self) -> DataFacts:
        """What the record says of it."""
        manifest = self.manifest
        name = "generated" if manifest.generated else manifest.name
        return DataFacts(name, manifest.sha256(), self.sequences, manifest.tokens)

    @property
    def sequences(self) -> int:
        """Samples in the data set; the last label of one is the first input of the next."""
        return (self.manifest.tokens - 1) // self.sequence_length

    def steps_per_epoch(self, gradient_accumulation_steps: int) -> int:
        """Optimizer steps in an epoch; ``UsageError`` when the data set does not fill one global batch."""
        global_batch_size = gradient_accumulation_steps * self._world_size * self.local_batch_size
        if self.sequences < global_batch_size:
            more = "raise data.generated_sequences to" if self.manifest.generated else "use a data set of"
            raise UsageError(
                f"data set {self.manifest.name!r} holds {self.sequences} sequences of {self.sequence_length} "
                f"tokens, one global batch needs {global_batch_size} (LBS {self.local_batch_size} "
                f"x GAS {gradient_accumulation_steps} x DP {self._world_size})",
                f"{more} {global_batch_size} sequences or more, or lower LBS, GAS or the sequence length",
            )
        return self.sequences // global_batch_size

    def epochs_at(self, step: int, gradient_accumulation_steps: int) -> int:
        """Whole passes over the data set before ``step`` (from 0)."""
        return step // self.steps_per_epoch(gradient_accumulation_steps)

    def batch(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> MicroBatch:
        """Inputs and labels ``[LBS, S]`` of this rank in micro-batch ``micro_step`` of ``step`` (both from 0)."""
        samples = self._samples(step, micro_step, gradient_accumulation_steps)
        length = self.sequence_length
        inputs = np.empty((len(samples), length), dtype=np.int64)
        labels = np.empty_like(inputs)
        for row, sample in enumerate(samples):
            window = self._tokens[sample * length : (sample + 1) * length + 1]
            inputs[row], labels[row] = window[:-1], window[1:]
        return MicroBatch({"input_ids": inputs, "labels": labels})

    def _samples(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> Tokens:
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch(gradient_accumulation_steps))
        slices = step_in_epoch * gradient_accumulation_steps + micro_step
        first = (slices * self._world_size + self._rank) * self.local_batch_size
        return self._permutation(epoch)[first : first + self.local_batch_size]

    def _permutation(self, epoch: int) -> Tokens:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permutation(self.sequences, [self._seed, epoch])
        return self._order[1]
