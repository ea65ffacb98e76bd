"""Adam's state, whichever class keeps it: core's, torch's, or what a vendor's ``optimizer_wrap`` put there."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from core.errors import DeviceError
from schemas.checkpoint import LossScale


class DeepSpeedScaler(Protocol):
    """What DeepSpeed's loss scalers have in common."""

    cur_scale: float
    cur_iter: int
    last_overflow_iter: int


LossScaler = torch.amp.GradScaler | DeepSpeedScaler


def allocate(optimizer: Optimizer) -> None:
    """Have ``optimizer`` make its state, as it does in its first step: one at rate 0, on gradients of 0.

    It moves no weight, but counts as an update.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grads = [parameter.grad for parameter in parameters]  # DeepSpeed keeps buffers there
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad


def moment(optimizer: Optimizer, parameter: Tensor, name: str) -> Tensor:
    """``exp_avg`` or ``exp_avg_sq`` of ``parameter``; DeviceError where the optimizer keeps none."""
    state = optimizer.state.get(parameter, {})
    if name in state:
        found: Tensor = state[name]
        return found
    raise DeviceError(
        f"{type(optimizer).__module__}.{type(optimizer).__qualname__} keeps no {name}",
        "for checkpoints, give optimizer_wrap an optimizer whose state is named as torch's AdamW names it",
    )


def updates(optimizers: list[Optimizer]) -> int:
    """How many updates the bias correction counts; it is the same for all parameters."""
    return max((int(holder["step"]) for optimizer in optimizers for holder in _counters(optimizer)), default=0)


def set_updates(optimizers: list[Optimizer], count: int) -> None:
    """Have bias correction go on after ``count`` updates; the state must be there."""
    for optimizer in optimizers:
        for holder in _counters(optimizer):
            if isinstance(holder["step"], Tensor):
                holder["step"].fill_(count)
            else:
                holder["step"] = count


def loss_scale(scaler: LossScaler) -> LossScale:
    """Where a loss scaler stands."""
    if isinstance(scaler, torch.amp.GradScaler):
        state = scaler.state_dict()
        return LossScale(scale=state["scale"], clean_steps=state["_growth_tracker"])
    return LossScale(scale=scaler.cur_scale, clean_steps=scaler.cur_iter - scaler.last_overflow_iter - 1)


def set_loss_scale(scaler: LossScaler, given: LossScale) -> None:
    """Have a loss scaler go on from ``given``."""
    if isinstance(scaler, torch.amp.GradScaler):
        told = {"scale": given.scale, "_growth_tracker": given.clean_steps}
        scaler.load_state_dict(scaler.state_dict() | told)
    else:
        scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = given.scale, given.clean_steps, -1


def _counters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """A step is counted by parameter, or by group."""
    return [holder for holder in (*optimizer.param_groups, *optimizer.state.values()) if "step" in holder]
