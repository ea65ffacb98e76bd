"""Shards of FSDP2 moved by copies from device to device, with no kernel of a collective library.

A library's collectives run on the multiprocessors that matrix products want, and reduce in the type that they
send: a sum in fp32 sends fp32. Here copy engines move the bytes, gradients travel in their own type, and each rank
adds up in fp32 what it received: but for the order of its terms what an fp32 reduction gives, at half the traffic.

It takes devices that can write into each other's memory: those of one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from core.errors import DeviceError

try:
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter
except ImportError as error:
    raise DeviceError(
        f"collectives 'peer_copies' need torch 2.9 or later, this is {torch.__version__}",
        "plan collectives=library",
    ) from error


class Window(Protocol):
    """Memory of each rank that all of them can read and write; what is queued goes to the current stream."""

    def reserve(self, size_bytes: int) -> None:
        """Have at least so much of it on every rank; all ranks call it alike."""

    def part(self, rank: int, like: Tensor, offset: int = 0) -> Tensor:
        """A tensor as ``like`` in the memory of ``rank``, ``offset`` of its elements behind the beginning."""

    def barrier(self) -> None:
        """Whatever a rank has queued before comes before whatever any rank queues after."""


WindowMaker = Callable[[dist.ProcessGroup, torch.device], Window]
_MAKERS: dict[str, WindowMaker] = {}


def offer_windows(device_type: str, make: WindowMaker) -> None:
    """Let windows between devices of a type be made so; for vendors' plugins, in the hook ``prepare_engine``."""
    _MAKERS[device_type] = make


def make_window(group: dist.ProcessGroup, device: torch.device) -> Window:
    """A window over the ranks of ``group``; DeviceError where nobody offers one."""
    if device.type not in _MAKERS:
        raise DeviceError(
            f"collectives 'peer_copies' need memory that ranks share, which the vendor's plugin does not offer "
            f"for {device.type}",
            "plan collectives=library",
        )
    return _MAKERS[device.type](group, device)


class PeerAllGather(AllGather):
    """Every rank reads the others' shards."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As torch does."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> None:
        """``input_tensor``, flat, is this rank's slice of ``output_tensor`` already: FSDP2 put it there."""
        rank, ranks = group.rank(), group.size()
        slices = output_tensor.view(ranks, -1)
        self._window.reserve(input_tensor.nbytes)
        self._window.part(rank, input_tensor).copy_(input_tensor)
        self._window.barrier()
        for peer in others(rank, ranks):
            slices[peer].copy_(self._window.part(peer, input_tensor))
        self._window.barrier()


class PeerReduceScatter(ReduceScatter):
    """Every rank writes to the others what is theirs to add up."""

    def __init__(self, window: Window, gradient_type: torch.dtype, device: torch.device) -> None:
        self._mean = compiled_on(device, mean_of_ranks)
        self._window = window
        self._gradient_type = gradient_type
        self._sends_next = True

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """FSDP2 asks for what is sent and then for the sum, both times in the sum's type; only the sum gets it."""
        sends, self._sends_next = self._sends_next, not self._sends_next
        return torch.empty(*size, dtype=self._gradient_type if sends else dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        """The mean over all ranks of each one's slice of ``input_tensor``."""
        rank, ranks = group.rank(), group.size()
        assert op == dist.ReduceOp.AVG
        assert (input_tensor.dtype, input_tensor.numel()) == (self._gradient_type, ranks * output_tensor.numel())
        slices = input_tensor.view(ranks, -1)
        self._window.reserve(input_tensor.nbytes)
        self._window.barrier()  # what came last time has been added up
        for peer in (rank, *others(rank, ranks)):
            self._window.part(peer, slices[peer], rank * slices[peer].numel()).copy_(slices[peer])
        self._window.barrier()
        self._mean(self._window.part(rank, input_tensor).view(ranks, -1), output_tensor)


def use_peer_copies(
    modules: Sequence[FSDPModule], group: dist.ProcessGroup, device: torch.device, gradient_type: torch.dtype
) -> None:
    """Let ``modules``, which are sharded over ``group``, move their shards by copies.

    Gathering and reducing overlap, so each has a window of its own.
    """
    gather = PeerAllGather(make_window(group, device))
    reduce = PeerReduceScatter(make_window(group, device), gradient_type, device)
    for module in modules:
        module.set_custom_all_gather(gather)
        module.set_custom_reduce_scatter(reduce)


def compiled_on(
    device: torch.device, sums_up: Callable[[Tensor, Tensor], None]
) -> Callable[[Tensor, Tensor], None]:
    """Compiled on accelerators: the mean of 202 M of 4 ranks takes an H200 143 µs; torch's own kernel 224."""
    return sums_up if device.type == "cpu" else torch.compile(sums_up)


def mean_of_ranks(received: Tensor, mean: Tensor) -> None:
    """Of ``received`` ``[ranks, N]``, added up in fp32, into ``mean`` ``[N]``."""
    mean.copy_(received.float().mean(dim=0))


def others(rank: int, ranks: int) -> list[int]:
    """The other ranks, from the next one on, so that all read from, or write to, different ones at a time."""
    return [(rank + distance) % ranks for distance in range(1, ranks)]
