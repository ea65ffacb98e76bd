"""Whether all ranks read the same data: each node has files of its own."""

from __future__ import annotations

import torch.distributed as dist

from core.data.source import DataFacts
from core.errors import UsageError


def require_same(facts: DataFacts) -> None:
    """UsageError, on every rank, unless ``facts`` are of the same data on all of them; a collective.

    Ranks cut one order of samples into parts. Of other data they would make another order: some samples would be
    trained on twice, others never, and the record would name the data of rank 0.
    """
    told = [""] * dist.get_world_size()
    dist.all_gather_object(told, facts.sha256)
    for rank, sha256 in enumerate(told):
        if sha256 != told[0]:
            raise UsageError(
                f"data {facts.name!r} has hash {told[0][:12]} on rank 0, but {sha256[:12]} on rank {rank}",
                "give all nodes the same files of data and tokenizer; for generated data, the same software",
            )
