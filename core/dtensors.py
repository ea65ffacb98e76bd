"""This rank's part of a tensor that ranks may share (a DTensor): taken out of it, and made one again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part, without the autograd history of a parameter."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def as_dtensor(part: Tensor, whole: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """This rank's ``part`` of a tensor with the shape and strides of ``whole``; no rank asks another."""
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())
