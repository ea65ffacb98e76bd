"""Collectives between ranks, each held against what it must give."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from core.testing.check import DeviceScene, FailedError

SIZE = 1 << 16


def collectives_are_right(scene: DeviceScene) -> str:
    """What the engines use of the collective library gives what it must, in fp32, bf16 and int64."""
    device = scene.torch_device
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("int64", torch.int64)):
        _all_reduces(device, name, dtype)
    _gathers(device)
    _point_to_point(device)
    _within_a_group(device)
    dist.barrier()
    return f"{dist.get_world_size()} ranks, {scene.device.collective_backend}"


def _own(device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((SIZE,), dist.get_rank() + 1, dtype=dtype, device=device)


def _all_reduces(device: torch.device, name: str, dtype: torch.dtype) -> None:
    world = dist.get_world_size()
    for what, operation, expected in (
        ("sum", dist.ReduceOp.SUM, world * (world + 1) // 2),
        ("maximum", dist.ReduceOp.MAX, world),
    ):
        tensor = _own(device, dtype)
        dist.all_reduce(tensor, op=operation)
        _require(f"all_reduce, {what} of {name}", tensor, expected)
    tensor = _own(device, dtype)
    dist.broadcast(tensor, src=world - 1)
    _require(f"broadcast of {name}", tensor, world)


def _gathers(device: torch.device) -> None:
    world = dist.get_world_size()
    gathered = torch.empty(world * SIZE, device=device)
    dist.all_gather_into_tensor(gathered, _own(device))
    for rank, part in enumerate(gathered.chunk(world)):
        _require("all_gather_into_tensor", part, rank + 1)
    scattered = torch.empty(SIZE, device=device)
    dist.reduce_scatter_tensor(scattered, _own(device).repeat(world))
    _require("reduce_scatter_tensor", scattered, world * (world + 1) // 2)


def _point_to_point(device: torch.device) -> None:
    """Around the ring, as pipeline stages do."""
    rank, world = dist.get_rank(), dist.get_world_size()
    received = torch.empty(SIZE, device=device)
    operations = [
        dist.P2POp(dist.isend, _own(device), (rank + 1) % world),
        dist.P2POp(dist.irecv, received, (rank - 1) % world),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    _require("isend and irecv", received, (rank - 1) % world + 1)


def _within_a_group(device: torch.device) -> None:
    """A group of some of the ranks, as tensor and data parallel ones are."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    tensor = _own(device)
    dist.all_reduce(tensor, group=groups[dist.get_rank()])
    _require("all_reduce within a group", tensor, dist.get_rank() + 1)


def _require(what: str, tensor: Tensor, expected: int) -> None:
    low, high = float(tensor.min().item()), float(tensor.max().item())
    if low != expected or high != expected:
        raise FailedError(f"{what} gives values from {low:g} to {high:g}, not {expected}")
