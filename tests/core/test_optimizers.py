"""The bf16 optimizer: expected weights move although each update is far below a unit in the last place."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from core.optimizers import StochasticAdamW, build_optimizer, stochastic_bf16
from schemas.hyperparameters import HyperParameters

SETTINGS = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


def test_rounding_keeps_the_mean_and_exact_values() -> None:
    torch.manual_seed(0)
    between = 1 + 2**-9  # a quarter of the way from 1 to the next bf16 number
    rounded = stochastic_bf16(torch.full((100_000,), between)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    assert rounded.mean().item() == pytest.approx(between, abs=1e-4)
    exact = torch.tensor([0.0, 1.0, -2.5, 2.0**127, float("inf"), float("-inf")])
    assert torch.equal(stochastic_bf16(exact).float(), exact.to(torch.bfloat16).float())
    assert stochastic_bf16(torch.tensor([float("nan")])).isnan().all()


def test_negative_values_round_both_ways() -> None:
    torch.manual_seed(0)
    rounded = stochastic_bf16(torch.full((100_000,), -(1 + 2**-8))).float()
    assert rounded.mean().item() == pytest.approx(-(1 + 2**-8), abs=1e-4)


def test_small_updates_arrive_on_average_where_plain_bf16_stands_still() -> None:
    torch.manual_seed(0)
    steps, size = 20, 20_000
    ours = torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16))
    plain = torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16))
    exact = torch.nn.Parameter(torch.ones(size))
    optimizers = [
        StochasticAdamW([ours], SETTINGS),
        torch.optim.AdamW([plain], **SETTINGS),
        torch.optim.AdamW([exact], **SETTINGS),
    ]
    for _ in range(steps):
        for parameter, optimizer in zip((ours, plain, exact), optimizers, strict=True):
            parameter.grad = torch.full_like(parameter, 0.5)
            optimizer.step()
    moved = 1 - exact.mean().item()
    assert moved == pytest.approx(steps * SETTINGS["lr"], rel=0.01)
    assert 1 - ours.float().mean().item() == pytest.approx(moved, rel=0.1)
    assert (plain == 1).all()


def test_grad_scale_equals_scaled_gradients() -> None:
    gradient = torch.randn(512, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    weights = []
    for scale, grad in ((torch.tensor(0.25), gradient), (None, gradient * 0.25)):
        torch.manual_seed(7)
        parameter = torch.nn.Parameter(torch.ones(512, dtype=torch.bfloat16))
        optimizer = StochasticAdamW([parameter], SETTINGS | {"lr": 0.1, "weight_decay": 0.1})
        optimizer.grad_scale = scale
        parameter.grad = grad.clone()
        optimizer.step()
        weights.append(parameter.detach().clone())
    assert torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("device_type", "kernel", "fused"), [("cpu", False, None), ("cpu", True, True), ("acme", False, True)]
)
def test_the_fused_step_needs_a_kernel_on_a_device_that_torch_does_not_know(
    monkeypatch: pytest.MonkeyPatch, device_type: str, kernel: bool, fused: bool | None
) -> None:
    """The device is the CPU; which type counts as out-of-tree is what differs."""
    asked = []

    def has_kernel(operator: str, key: str) -> bool:
        asked.append((operator, key))
        return kernel

    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: device_type)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", has_kernel)
    hp = HyperParameters(precision="bf16", local_batch_size=1, sequence_length=8, learning_rate=1e-3)
    weight = torch.nn.Parameter(torch.ones(2))
    for given in ([weight], [{"params": [weight]}]):
        assert build_optimizer(given, hp).defaults["fused"] is fused
    assert asked == ([("aten::_fused_adamw_", "PrivateUse1")] * 2 if device_type == "cpu" else [])


def test_torch_still_has_the_kernel_that_is_asked_for() -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", "CPU")
