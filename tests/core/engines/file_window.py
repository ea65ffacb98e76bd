"""Memory that several processes of a CPU share: what symmetric memory is to devices."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from core.engines import peer_copies

_NUMBERS = count()


class FileWindow:
    """A :class:`core.engines.peer_copies.Window` of mapped files, one a rank."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, *, folder: Path) -> None:
        assert device.type == "cpu"
        self._group, self._folder, self._number = group, folder, next(_NUMBERS)
        self._maps: list[Tensor] = []

    def reserve(self, size_bytes: int) -> None:
        if self._maps and self._maps[0].numel() >= size_bytes:
            return
        files = [self._folder / f"window-{self._number}-{size_bytes}-{rank}" for rank in range(self._group.size())]
        self._maps = [
            torch.from_file(str(file), shared=True, size=size_bytes, dtype=torch.uint8) for file in files
        ]
        self.barrier()

    def part(self, rank: int, like: Tensor, offset: int = 0) -> Tensor:
        first = offset * like.element_size()
        return self._maps[rank][first : first + like.nbytes].view(like.dtype).view(like.shape)

    def barrier(self) -> None:
        dist.barrier(self._group)


def offer_file_windows(folder: Path) -> None:
    """Let peer copies on the CPU go through files of ``folder``."""
    peer_copies.offer_windows("cpu", partial(FileWindow, folder=folder))
