"""The bf16 optimizer: expected weights move although each update is far below a unit in the last place."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from core.optimizers import StochasticAdamW, _update, build_optimizer, noise, stochastic_bf16, takes_grad_scale
from schemas.hyperparameters import HyperParameters

SETTINGS = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


def rounded(value: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return stochastic_bf16(value, noise(value.numel(), torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32))[0])


def test_rounding_keeps_the_mean_and_exact_values() -> None:
    between = 1 + 2**-9  # a quarter of the way from 1 to the next bf16 number
    found = rounded(torch.full((100_000,), between)).float()
    assert set(found.unique().tolist()) == {1.0, 1 + 2**-7}
    assert found.mean().item() == pytest.approx(between, abs=1e-4)
    exact = torch.tensor([0.0, 1.0, -2.5, 2.0**127, float("inf"), float("-inf")])
    assert torch.equal(rounded(exact).float(), exact.to(torch.bfloat16).float())
    assert rounded(torch.tensor([float("nan")])).isnan().all()


def test_negative_values_round_both_ways() -> None:
    found = rounded(torch.full((100_000,), -(1 + 2**-8))).float()
    assert found.mean().item() == pytest.approx(-(1 + 2**-8), abs=1e-4)


SEEDS = [(0, 0), (1, 0), (0, 1), (-1, 2**31 - 1), (123_456_789, -987_654_321)]


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_even_and_its_rows_are_independent(seed: tuple[int, int]) -> None:
    """Chi-squared over 256 cells has mean 255 and deviation 22.6; correlations of n numbers deviate by n^-1/2."""
    count = 1 << 20
    rows = noise(count, torch.tensor(seed, dtype=torch.int32))
    for row in rows:
        assert (int(row.min()), int(row.max())) >= (0, 0)
        assert int(row.max()) < 1 << 16
        for cells in (row >> 8, row & 255):
            square = (torch.bincount(cells, minlength=256).double() - count / 256).square().sum() / (count / 256)
            assert abs(square.item() - 255) < 6 * 22.6
    pairs = [(rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2])]
    pairs += [(row[:-shift], row[shift:]) for row in rows for shift in (1, 2, 256, 4096)]
    for one, other in pairs:
        assert abs(torch.corrcoef(torch.stack((one.double(), other.double())))[0, 1].item()) < 6 / count**0.5


def test_noise_of_two_steps_has_nothing_in_common() -> None:
    count = 1 << 20
    steps = [noise(count, torch.tensor(seed, dtype=torch.int32)) for seed in SEEDS]
    for row in range(3):
        for one, other in pairwise(steps):
            if row < 2 and torch.equal(one[row], other[row]):
                continue  # the first two rows take the first half of the seed
            found = torch.corrcoef(torch.stack((one[row].double(), other[row].double())))[0, 1].item()
            assert abs(found) < 6 / count**0.5


@pytest.mark.slow
def test_the_compiled_update_rounds_as_the_plain_one() -> None:
    """As an accelerator runs it; a compiler may add in another order, which a few values in 2^16 may show."""
    torch.manual_seed(3)
    size, seed = 10_000, torch.tensor([5, -7], dtype=torch.int32)
    numbers = torch.tensor([0.1, 0.999, 0.9, 0.95, 4.5, 1e-8, 0.5])
    given = [torch.randn(size).to(torch.bfloat16), torch.randn(size).to(torch.bfloat16)]
    given += [torch.zeros(size, dtype=torch.bfloat16), torch.rand(size).to(torch.bfloat16)]
    results = []
    for update in (_update, torch.compile(_update)):
        tensors = [tensor.clone() for tensor in given]
        update(tensors, numbers, seed)
        results.append(tensors)
    for one, other in zip(*results, strict=True):
        assert (one != other).sum() <= size / 1000


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


@pytest.mark.parametrize(("state", "dtype"), [("bf16_stochastic", torch.bfloat16), ("fp32", torch.float32)])
def test_an_update_by_grad_scale_is_that_of_divided_gradients(state: str, dtype: torch.dtype) -> None:
    gradient = torch.randn(512, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = []
    for scale, grad in ((torch.tensor(4.0), gradient), (None, gradient * 0.25)):
        torch.manual_seed(7)
        parameter = torch.nn.Parameter(torch.ones(512, dtype=dtype))
        hp = HyperParameters(precision="bf16", local_batch_size=1, sequence_length=1, learning_rate=0.1,
                             weight_decay=0.1, optimizer_state=state)  # fmt: skip
        optimizer = build_optimizer([parameter], hp)
        assert takes_grad_scale(optimizer)
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
        parameter.grad = grad.clone()
        optimizer.step()
        weights.append(parameter.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], torch.ones(512, dtype=dtype))


def test_clipping_is_told_apart_for_optimizers_that_know_no_grad_scale() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not takes_grad_scale(torch.optim.AdamW([parameter], fused=False))
    assert not takes_grad_scale(torch.optim.SGD([parameter]))


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
