"""How a worker joins the others."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from schemas.chip import Device

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


def join(
    device: Device, timeout: timedelta, store: Store | None = None, rank: int = -1, world_size: int = -1
) -> None:
    """Make the process group of all ranks, bound to the device where the collective library can make use of it.

    Without a ``store``, they meet where the launcher's variables say; ``rank`` and ``world_size`` go with it.
    """
    where = None if device.type == "cpu" else torch.device(device.torch_device)
    dist.init_process_group(
        device.collective_backend,
        timeout=timeout,
        store=store,
        rank=rank,
        world_size=world_size,
        device_id=where,
    )
    world = dist.group.WORLD
    if where is not None and world is not None and not world._get_backend(where).supports_splitting:
        # torch makes a mesh's groups by splitting a bound one, which some collective libraries cannot.
        world.bound_device_id = None
