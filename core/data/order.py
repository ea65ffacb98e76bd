"""Which samples each rank sees at each step: an epoch is a permutation, cut into global batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def permutation(samples: int, seed: Sequence[int]) -> Numbers:
    """An order of the samples, the same on every platform; ``seed`` is a run's own and what it varies with."""
    # numpy keeps a bit generator's raw stream for good, but not what Generator.permutation makes of it.
    keys = np.random.PCG64(list(seed)).random_raw(samples) if samples else np.empty(0, dtype=np.uint64)
    return np.argsort(keys, kind="stable")


class SampleOrder:
    """Step ``k`` of an epoch takes samples ``[k*GBS, (k+1)*GBS)`` of its permutation, laid out as [GAS, DP, LBS].

    So the global batch is the same set in whatever way it is split. All samples are seen in every epoch: its last
    global batch holds those that are left.
    """

    def __init__(self, samples: int, local_batch_size: int, rank: int, world_size: int, seed: int) -> None:
        self.local_batch_size = local_batch_size
        self._samples, self._rank, self._world_size, self._seed = samples, rank, world_size, seed
        self._order: tuple[int, Numbers] | None = None

    def steps_per_epoch(self, gradient_accumulation_steps: int) -> int:
        """Optimizer steps in an epoch."""
        return -(-self._samples // (gradient_accumulation_steps * self._world_size * self.local_batch_size))

    def samples(self, step: int, micro_step: int, gradient_accumulation_steps: int) -> Numbers:
        """This rank's samples in ``micro_step`` of ``step`` (from 0); fewer than LBS at an epoch's end."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch(gradient_accumulation_steps))
        slices = step_in_epoch * gradient_accumulation_steps + micro_step
        first = (slices * self._world_size + self._rank) * self.local_batch_size
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permutation(self._samples, [self._seed, epoch])
        return self._order[1][first : first + self.local_batch_size]
