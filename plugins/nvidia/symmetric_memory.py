"""Memory that the GPUs of a node share, for ``core.engines.peer_copies``: torch's symmetric memory.

Ranks wait for each other by the driver's stream memory operations, which no multiprocessor takes part in. Torch's
own barrier is a kernel that spins on one: beside it a matrix product of an H200 takes 4 to 16% longer, and ranks
wait for the slowest of them a third of the time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import DeviceError

FLAG_BYTES = 4096
"""At the beginning of each rank's memory: a number for each peer, that of the last barrier it has come to."""
GREATER_OR_EQUAL = 0
"""``CU_STREAM_WAIT_VALUE_GEQ``, https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEMOP.html"""


class SymmetricWindow:
    """A ``core.engines.peer_copies.Window``."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self._memory: Tensor | None = None
        self._handle: Any = None
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._barriers = 0

    def reserve(self, size_bytes: int) -> None:
        """DeviceError where the GPUs cannot reach each other's memory."""
        if self._memory is not None and self._memory.numel() >= FLAG_BYTES + size_bytes:
            return
        from torch.distributed import _symmetric_memory as symmetric

        self._meet()  # nobody uses any more what is given up
        self._memory = self._handle = None  # the handle would keep all of it mapped beside the new one
        try:
            self._memory = symmetric.empty(FLAG_BYTES + size_bytes, dtype=torch.uint8, device=self._device)
            self._handle = symmetric.rendezvous(self._memory, self._group)
        except RuntimeError as error:
            raise DeviceError(
                f"{torch.cuda.get_device_name(self._device)} cannot reach the memory of its peers: {error}",
                "plan collectives=library, or use GPUs of one node with peer access",
            ) from error
        self._memory[:FLAG_BYTES].zero_()
        self._barriers = 0
        self._meet()

    def part(self, rank: int, like: Tensor, offset: int = 0) -> Tensor:
        """See ``Window``."""
        first = FLAG_BYTES // like.element_size() + offset
        found: Tensor = self._handle.get_buffer(rank, like.shape, like.dtype, first)
        return found

    def barrier(self) -> None:
        """See ``Window``; a copy that is queued before it has arrived when its flag does."""
        self._barriers += 1
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        own, ranks = self._group.rank(), self._group.size()
        others = [rank for rank in range(ranks) if rank != own]
        for rank in others:
            self._queue("cuStreamWriteValue32_v2", stream, self._flag(of=rank, by=own), 0)
        for rank in others:
            self._queue("cuStreamWaitValue32_v2", stream, self._flag(of=own, by=rank), GREATER_OR_EQUAL)

    def _flag(self, *, of: int, by: int) -> int:
        """The address, in the memory of rank ``of``, of the number that rank ``by`` writes."""
        flags: Tensor = self._handle.get_buffer(of, (FLAG_BYTES // 4,), torch.int32)
        return flags.data_ptr() + 4 * by

    def _queue(self, operation: str, stream: ctypes.c_void_p, address: int, flags: int) -> None:
        number = ctypes.c_uint32(self._barriers)
        code = getattr(self._driver, operation)(stream, ctypes.c_uint64(address), number, ctypes.c_uint(flags))
        if code != 0:
            raise DeviceError(
                f"{operation} of CUDA's driver failed with code {code}",
                "plan collectives=library, or use a driver with stream memory operations",
            )

    def _meet(self) -> None:
        torch.cuda.synchronize(self._device)
        dist.barrier(self._group)
