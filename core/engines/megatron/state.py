"""Main weights and Adam's moments inside of Megatron's optimizers, in the shape of the parameters.

The distributed optimizer cuts the parameters, laid end to end, into equal shares, one for each replica: of a
parameter, a rank holds a range of elements, or nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from core.engines.megatron.weights import View
from core.optimizer_state import moment
from schemas.checkpoint import Part


class _Held(NamedTuple):
    """What an optimizer holds of a parameter on this rank."""

    optimizer: torch.optim.Optimizer
    main: Tensor
    elements: slice
    """Of the flat parameter."""


class MegatronState:
    """Of one rank's optimizers; ``replicas`` are the ranks that hold the same parameters."""

    def __init__(self, optimizer: MegatronOptimizer, replicas: dist.ProcessGroup) -> None:
        self._chained: list[MegatronOptimizer] = optimizer.chained_optimizers
        self._replicas = replicas

    def read(self, parameter: nn.Parameter, part: Part) -> Tensor:
        """``part`` in the shape of ``parameter``; all replicas take part where it is spread over them."""
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        held = self._held(parameter)
        if held is not None:
            whole[held.elements] = _own(held, part).flatten()
        if any(isinstance(chained, DistributedOptimizer) for chained in self._chained):
            # As integers, since a sum of floating point zeros would lose the sign of one.
            dist.all_reduce(whole.view(torch.int32), group=self._replicas)
        return whole.view(parameter.shape)

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, view: View, part: Part, value: Tensor) -> None:
        """Copy ``value`` to where ``view`` shows in ``part`` of ``parameter``, as far as this rank holds it."""
        held = self._held(parameter)
        if held is None:
            return
        own = _own(held, part)
        whole = torch.empty(parameter.numel(), dtype=own.dtype, device=own.device)
        whole[held.elements] = own.flatten()
        view(whole.view(parameter.shape)).copy_(value)
        own.copy_(whole[held.elements].view(own.shape))

    def _held(self, parameter: nn.Parameter) -> _Held | None:
        for chained in self._chained:
            if isinstance(chained, DistributedOptimizer):
                place = chained.model_param_group_index_map.get(parameter)
                if place is not None:
                    main = chained.optimizer.param_groups[place[0]]["params"][place[1]]
                    owned = chained._get_model_param_range_map(parameter)["param"]
                    return _Held(chained.optimizer, main, slice(owned.start, owned.end))
            else:
                main = getattr(parameter, "main_param", parameter)
                return _Held(chained.optimizer, main, slice(0, parameter.numel()))
        return None


def _own(held: _Held, part: Part) -> Tensor:
    return held.main.detach() if part == "main_weights" else moment(held.optimizer, held.main, part)
