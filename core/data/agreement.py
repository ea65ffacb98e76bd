"""Whether all ranks read the same files: each node has its own."""

from __future__ import annotations

import torch.distributed as dist

from core.errors import UsageError


def require_same(what: str, sha256: str, fix: str) -> None:
    """UsageError, on every rank, unless ``what`` have this hash on all of them; a collective.

    Ranks cut one order of samples into parts. Of other data they would make another order: some samples would be
    trained on twice, others never. Of other weights each would fill its own part of the model. And the record
    would name the hash of rank 0.
    """
    told = [""] * dist.get_world_size()
    dist.all_gather_object(told, sha256)
    for rank, other in enumerate(told):
        if other != told[0]:
            raise UsageError(f"{what} differ: hash {told[0][:12]} on rank 0, {other[:12]} on rank {rank}", fix)
