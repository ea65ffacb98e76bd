"""Ranks that are threads of one process, and memory that they share: for what must wait for what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

RANKS, DELAY_S = 3, 0.01


class SharedWindows:
    """A window of each rank; those of ``slow`` take their time to copy."""

    def __init__(self, slow: int, size_bytes: int) -> None:
        self.slow = slow
        self.memories = [torch.zeros(size_bytes, dtype=torch.uint8) for _ in range(RANKS)]
        self.met = threading.Barrier(RANKS, timeout=10)

    def of(self, rank: int) -> Any:
        """What rank ``rank`` sees of them."""

        def part(of: int, like: torch.Tensor, offset: int = 0) -> torch.Tensor:
            if rank == self.slow:
                time.sleep(DELAY_S)
            first = offset * like.element_size()
            return self.memories[of][first : first + like.nbytes].view(like.dtype).view(like.shape)

        def reserve(size_bytes: int) -> None:
            assert size_bytes <= self.memories[rank].numel()

        return SimpleNamespace(part=part, reserve=reserve, barrier=self.met.wait)


def on_ranks(work: Callable[[int, Any], None]) -> None:
    """``work(rank, group)`` in a thread for each rank."""
    failed: list[BaseException] = []

    def rank_of(rank: int) -> None:
        try:
            work(rank, SimpleNamespace(rank=lambda: rank, size=lambda: RANKS))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
