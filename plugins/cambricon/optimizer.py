"""AdamW in torch_mlu's fused kernel, which updates all weights in one call.

torch_mlu's own ``FusedAdam`` calls the same operator, but takes neither sharded parameters (DTensors, as FSDP2 has
them) nor ``zero_grad(set_to_none=True)``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.dtensors import local_part

SETTINGS = ("params", "lr", "betas", "eps", "weight_decay")
DECOUPLED_DECAY = 1
BIAS_CORRECTION = 1


def has_kernel() -> bool:
    """Whether this torch_mlu brings the operator."""
    return hasattr(torch.ops.torch_mlu, "fused_adam")


class FusedAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) with fp32 moments, as ``torch_mlu::fused_adam`` computes it.

    The operator's arguments are those of the ``multi_tensor_adam`` of NVIDIA's Apex, by torch_mlu's sources and
    DeepSpeed's builder for MLUs. Each parameter counts its own updates: ZeRO-3 steps a part of a group at a time.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        """``groups`` are those of the AdamW that it replaces; each has all of ``SETTINGS``."""
        super().__init__([{name: group[name] for name in SETTINGS} for group in groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            alike: defaultdict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.dtype, self._count(parameter)].append(parameter)
            for (_, update), parameters in alike.items():
                self._update(group, update, parameters)

    def _count(self, parameter: Tensor) -> int:
        """Which update of ``parameter`` this one is; its state is made for the first."""
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(local_part(parameter), dtype=torch.float32)
        state["step"] += 1
        return int(state["step"])

    def _update(self, group: dict[str, Any], update: int, parameters: list[Tensor]) -> None:
        weights = [local_part(parameter) for parameter in parameters]
        grads = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
        moments = [[self.state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq")]
        beta1, beta2 = group["betas"]
        overflow = torch.zeros(1, dtype=torch.int32, device=weights[0].device)  # the operator asks for it, unread
        torch.ops.torch_mlu.fused_adam(
            overflow, grads, weights, *moments, group["lr"], beta1, beta2, group["eps"], update, DECOUPLED_DECAY,
            BIAS_CORRECTION, group["weight_decay"],
        )  # fmt: skip
