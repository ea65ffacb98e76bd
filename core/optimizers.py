"""The optimizers core builds; a vendor's ``optimizer_wrap`` may put its own in their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core.dtensors import local_part
from schemas.hyperparameters import HyperParameters

STOCHASTIC_BITS = 16
"""Bits that fp32 has below bf16's last one."""
ROW = 1024
"""Numbers that an update's kernel takes as a row, where their count allows."""


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], hp: HyperParameters
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) as the plan's ``optimizer_state`` asks.

    ``parameters``: parameters or groups of them, as torch's optimizers take them.
    """
    settings: dict[str, Any] = {
        "lr": hp.learning_rate,
        "betas": (hp.adam_beta1, hp.adam_beta2),
        "eps": hp.adam_eps,
        "weight_decay": hp.weight_decay,
    }
    given: list[Any] = list(parameters)
    if hp.optimizer_state == "bf16_stochastic":
        return CompiledAdamW(given, settings)
    try:
        return torch.optim.AdamW(given, **settings, fused=True if _may_be_fused(given) else None)
    except RuntimeError:  # no fused kernel for this device type
        return torch.optim.AdamW(given, **settings)


def _may_be_fused(given: list[Any]) -> bool:
    """Whether to ask torch for its fused step.

    It takes that for every out-of-tree device; one without a kernel of its own would step on the host, if at all.
    """
    first = given[0]["params"][0] if isinstance(given[0], dict) else given[0]
    out_of_tree = first.device.type == torch._C._get_privateuse1_backend_name()
    return not out_of_tree or torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", "PrivateUse1")


def takes_grad_scale(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its update divides gradients by its attribute ``grad_scale``, which saves clipping a pass over them.

    Torch's fused AdamW has that for ``torch.amp.GradScaler``, which sets the attribute itself.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        return bool(optimizer.defaults["fused"])
    return isinstance(optimizer, CompiledAdamW)


def adamw_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The groups of torch's AdamW with what every AdamW takes of them, for one that steps in its place."""
    taken = ("params", "lr", "betas", "eps", "weight_decay")
    return [{name: group[name] for name in taken} for group in optimizer.param_groups]


class CompiledAdamW(torch.optim.Optimizer):
    """AdamW whose update is one compiled kernel a parameter: fp32 parameters step exactly, bf16 ones are rounded.

    bf16 weights and moments are rounded stochastically, and take 8 bytes a parameter with its gradient. Rounding
    to nearest would lose every update under half a unit in the last place of a weight, which at small learning
    rates is nearly all of them. Rounding up with the probability of the remainder keeps the expected weight exact
    (as in Zamirai et al., "Revisiting BFloat16 Training", arXiv 2010.06192).

    ``grad_scale``, when set, is a 0-dimensional tensor that gradients are divided by on the fly.
    """

    def __init__(self, params: Any, settings: dict[str, Any]) -> None:
        """``settings`` are AdamW's, for groups without their own: lr, betas, eps, weight_decay.

        All parameters of a group step together. On an accelerator the updates are compiled; op by op they would
        take several times the memory traffic, and fp32 temporaries of the largest weight.
        """
        super().__init__(params, settings)
        self.grad_scale: Tensor | None = None
        on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
        self._update: Callable[..., None] = _update if on_cpu else torch.compile(_update)
        self._update_rounding: Callable[..., None] = (
            _update_rounding if on_cpu else torch.compile(_update_rounding)
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            group["step"] = group.get("step", 0) + 1
            device = local_part(parameters[0]).device
            numbers = self._numbers(group, device)
            rounded = [parameter for parameter in parameters if parameter.dtype is torch.bfloat16]
            seeds = torch.randint(-(1 << 31), 1 << 31, (len(rounded), 2), dtype=torch.int32, device=device)
            for parameter, seed in zip(rounded, seeds.unbind(), strict=True):
                self._update_rounding(self._tensors(parameter), numbers, seed)
            for parameter in parameters:
                if parameter.dtype is not torch.bfloat16:
                    self._update(self._tensors(parameter), numbers)

    def _tensors(self, parameter: Tensor) -> list[Tensor]:
        """This rank's part of a weight, its gradient and both moments, which are made for the first update."""
        weight, state = local_part(parameter), self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        assert parameter.grad is not None
        # Rows of one length, however many: a kernel for any size would load each number by itself.
        row = math.gcd(weight.numel(), ROW)
        tensors = (weight, local_part(parameter.grad), state["exp_avg"], state["exp_avg_sq"])
        return [tensor.view(-1, row) for tensor in tensors]

    def _numbers(self, group: dict[str, Any], device: torch.device) -> Tensor:
        """What an update needs, as one tensor: Python numbers that change would recompile it every step.

        They reach the device as arguments of a kernel; a copy from the host's memory may wait for the device.
        """
        lr, (beta1, beta2) = group["lr"], group["betas"]
        correction1, correction2 = 1 - beta1 ** group["step"], 1 - beta2 ** group["step"]
        rate, decay, root_factor = lr / correction1, lr * group["weight_decay"], correction2**-0.5
        host = [rate, decay, 1 - beta1, 1 - beta2, root_factor, group["eps"], 1.0]
        numbers = torch.zeros(len(host), dtype=torch.float32, device=device)
        torch._foreach_add_(numbers.unbind(), host)
        if self.grad_scale is not None:
            numbers[-1] = self.grad_scale.reciprocal()
        return numbers


def _update(tensors: list[Tensor], numbers: Tensor) -> None:
    """One AdamW update of fp32 tensors of one shape: weight, gradient, both moments.

    ``numbers`` as ``_numbers`` orders them.
    """
    weight, _, exp_avg, exp_avg_sq = tensors
    w, m, v = _adamw(tensors, numbers)
    weight.copy_(w)
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)


def _update_rounding(tensors: list[Tensor], numbers: Tensor, seed: Tensor) -> None:
    """``_update`` of bf16 tensors, computed in fp32; ``seed`` as ``noise`` takes it."""
    weight, _, exp_avg, exp_avg_sq = tensors
    w, m, v = _adamw(tensors, numbers)
    for_m, for_v, for_w = (row.view_as(weight) for row in noise(weight.numel(), seed))
    exp_avg.copy_(stochastic_bf16(m, for_m))
    exp_avg_sq.copy_(stochastic_bf16(v, for_v))
    weight.copy_(stochastic_bf16(w, for_w))


def _adamw(tensors: list[Tensor], numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The new weight and moments, in fp32.

    Each is the old one and a difference: of factors near 1, as the betas are or 1 - lr * weight_decay, fp32 would
    keep few digits of what they lack to 1.
    """
    weight, grad, exp_avg, exp_avg_sq = (tensor.float() for tensor in tensors)
    rate, decay, share1, share2, root_factor, eps, scale = numbers.unbind()
    g = grad * scale
    m = exp_avg + (g - exp_avg) * share1
    v = exp_avg_sq + (g * g - exp_avg_sq) * share2
    w = weight - (weight * decay + rate * m / (v.sqrt() * root_factor + eps))
    return w, m, v


def stochastic_bf16(value: Tensor, noise: Tensor) -> Tensor:
    """Round fp32 to bf16, up or down with the probability that keeps the mean; infinities and NaN stay.

    An infinity has no bits below the last of bf16, and noise alone does not reach that; a NaN's would overflow.

    ``noise``: for each value an int32 from 0 to 2^16 - 1, all as likely.
    """
    bits = value.view(torch.int32)
    rounded = ((bits + noise) & -(1 << STOCHASTIC_BITS)).view(torch.float32)
    return torch.where(value.isnan(), value, rounded).to(torch.bfloat16)


def noise(count: int, seed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three independent rows of ``count`` numbers for ``stochastic_bf16``; ``seed`` is int32 ``[2]``, drawn anew.

    Hashes of the position: torch's generator takes ten rounds of multiplications for each number, and with three
    numbers a parameter that was four fifths of the update's time on an H200.
    """
    first = _hash(torch.arange(count, device=seed.device).to(torch.int32) ^ seed[0])
    # The upper half of a product with an odd number: whatever one half of the factor is, the other spreads it.
    second = (first ^ seed[1]) * (0x9E3779B1 - (1 << 32))
    low = (1 << STOCHASTIC_BITS) - 1
    return first & low, _shifted(first, STOCHASTIC_BITS), _shifted(second, STOCHASTIC_BITS)


def _hash(value: Tensor) -> Tensor:
    """A bijection of int32 that spreads every bit over all: "lowbias32" of Chris Wellons' hash prospector."""
    value = (value ^ _shifted(value, 16)) * 0x7FEB352D
    value = (value ^ _shifted(value, 15)) * (0x846CA68B - (1 << 32))
    return value ^ _shifted(value, 16)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """``value >> bits`` of an int32, with zeros in the place of copies of its sign."""
    return (value >> bits) & ((1 << (32 - bits)) - 1)
