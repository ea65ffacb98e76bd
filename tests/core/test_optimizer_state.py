"""Making, finding and counting Adam's state in optimizers that keep it in different ways."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from core.errors import DeviceError
from core.optimizer_state import allocate, loss_scale, moment, set_loss_scale, set_updates, updates
from core.optimizers import CompiledAdamW, build_optimizer
from schemas.checkpoint import LossScale
from schemas.hyperparameters import HyperParameters


def adam(parameter: Any) -> Any:
    return torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.5)


def stochastic(parameter: Any) -> Any:
    hp = HyperParameters(
        precision="bf16", optimizer_state="bf16_stochastic", local_batch_size=1, sequence_length=8,
        learning_rate=0.1, weight_decay=0.5,
    )  # fmt: skip
    return build_optimizer([parameter], hp)


def compiled(parameter: Any) -> Any:
    return CompiledAdamW([parameter], {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.5})


@pytest.fixture(params=[(adam, torch.bfloat16), (stochastic, torch.bfloat16), (compiled, torch.float32)])
def made(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A parameter and its optimizer: updates are counted by parameter in a tensor, or by group."""
    build, dtype = request.param
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 64).to(dtype))
    return parameter, build(parameter)


def test_state_is_made_and_nothing_moves(made: tuple[Any, Any]) -> None:
    parameter, optimizer = made
    before, parameter.grad = parameter.detach().clone(), torch.ones_like(parameter)
    assert updates([optimizer]) == 0
    allocate(optimizer)
    assert torch.equal(parameter, before)
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert optimizer.param_groups[0]["lr"] == 0.1
    for name in ("exp_avg", "exp_avg_sq"):
        assert not moment(optimizer, parameter, name).any()


def test_updates_are_counted_on(made: tuple[Any, Any]) -> None:
    parameter, optimizer = made
    allocate(optimizer)
    set_updates([optimizer], 7)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert updates([optimizer]) == 8


def test_state_of_another_kind_is_told() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(DeviceError) as error:
        moment(torch.optim.SGD([parameter], lr=0.1), parameter, "exp_avg")
    assert error.value.what == "torch.optim.sgd.SGD keeps no exp_avg"
    assert "optimizer_wrap" in error.value.fix


def scalers() -> list[Any]:
    deepspeeds = SimpleNamespace(cur_scale=4.0, cur_iter=10, last_overflow_iter=6)
    return [torch.amp.GradScaler("cpu", init_scale=4.0), deepspeeds]


@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_scale_goes_on(number: int) -> None:
    scaler = scalers()[number]
    assert loss_scale(scaler) == LossScale(scale=4.0, clean_steps=(0, 3)[number])
    given = LossScale(scale=1024.0, clean_steps=99)
    set_loss_scale(scaler, given)
    assert loss_scale(scaler) == given
