"""The compiled optimizer: fp32 weights go where torch's AdamW takes them, bf16 ones go there on average."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from core.optimizers import (
    CompiledAdamW,
    _update,
    _update_rounding,
    build_optimizer,
    noise,
    stochastic_bf16,
    takes_grad_scale,
)
from schemas.hyperparameters import HyperParameters

SETTINGS: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


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
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("dtype", "seed"), [(torch.bfloat16, (torch.tensor([5, -7], dtype=torch.int32),)), (torch.float32, ())]
)
def test_the_compiled_update_goes_where_the_plain_one_goes(dtype: torch.dtype, seed: tuple[torch.Tensor]) -> None:
    """As an accelerator runs it; a compiler may add in another order, which a few values in 2^16 may show."""
    torch.manual_seed(3)
    size = 10_000
    numbers = torch.tensor([0.1, 0.001, 0.1, 0.05, 4.5, 1e-8, 0.5])
    given = [torch.randn(size).to(dtype), torch.randn(size).to(dtype), torch.zeros(size, dtype=dtype)]
    given.append(torch.rand(size).to(dtype))
    plain = _update_rounding if seed else _update
    results = []
    for update in (plain, torch.compile(plain)):
        tensors = [tensor.clone() for tensor in given]
        update(tensors, numbers, *seed)
        results.append(tensors)
    for one, other in zip(*results, strict=True):
        assert (
            ~torch.isclose(one, other, rtol=0 if seed else 1e-6, atol=0 if seed else 1e-7)
        ).sum() <= size / 1000
    assert not torch.equal(results[1][0], given[0])


@pytest.mark.usefixtures("compiler")
def test_a_rate_that_changes_compiles_nothing_anew() -> None:
    """Nor do further sizes, once there were two."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    parameters = [torch.nn.Parameter(torch.ones(rows, 1024)) for rows in (2, 3, 4)]
    optimizer = CompiledAdamW(parameters, SETTINGS)
    optimizer._update = torch.compile(optimizer._update, backend="aot_eager")
    compiled = []
    for step in range(1, 4):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.param_groups[0]["lr"] = 0.1 / step
        optimizer.step()
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled == [2, 2, 2]
    assert torch.allclose(parameters[2], torch.tensor(1 - 0.1 * (1 + 1 / 2 + 1 / 3)))


def test_small_updates_arrive_on_average_where_plain_bf16_stands_still() -> None:
    torch.manual_seed(0)
    steps, size = 20, 20_000
    ours = torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16))
    plain = torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16))
    exact = torch.nn.Parameter(torch.ones(size))
    optimizers = [
        CompiledAdamW([ours], SETTINGS),
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


def groups() -> list[dict[str, Any]]:
    """Of odd counts, of few and of many numbers; one decays, the other does not."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 3), (1,), (0, 5)), ((4, 1024), (1536,))
    made = [[torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in own] for own in shapes]
    return [{"params": made[0], "weight_decay": 0.1}, {"params": made[1], "weight_decay": 0.0}]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("scale", [None, 3.0])
def test_fp32_weights_go_where_torch_s_adamw_takes_them(scale: float | None) -> None:
    settings: dict[str, Any] = {"lr": 3e-2, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.5}
    ours, torch_s = CompiledAdamW(groups(), settings), torch.optim.AdamW(groups(), **settings)
    ours.grad_scale = None if scale is None else torch.tensor(scale)
    drawn = torch.get_rng_state()
    for step in range(1, 5):
        for one, other in zip(parameters_of(ours), parameters_of(torch_s), strict=True):
            one.grad = (step * other.detach()).sin()
            other.grad = one.grad / (scale or 1.0)
        for group in (*ours.param_groups, *torch_s.param_groups):
            group["lr"] = 3e-2 / step
        ours.step()
        torch_s.step()
    for one, other in zip(parameters_of(ours), parameters_of(torch_s), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours.state[one][name], torch_s.state[other][name], rtol=1e-6, atol=1e-7)
    assert torch.equal(torch.get_rng_state(), drawn), "what is not rounded needs no noise"


def test_without_a_gradient_nothing_moves() -> None:
    still, moving = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = CompiledAdamW([still, moving], SETTINGS)
    moving.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2))
    assert still not in optimizer.state
    assert (moving < 1).all()


def test_a_decay_far_below_the_resolution_of_1_is_not_rounded() -> None:
    """In fp32, 1 - 1e-6 is 1 - 1.013e-6; the mean's error by rounding each of so many weights is 1e-10."""
    parameter = torch.nn.Parameter(1 + torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    before = parameter.detach().double()
    parameter.grad = torch.zeros_like(parameter)
    CompiledAdamW([parameter], SETTINGS | {"lr": 1e-5, "weight_decay": 0.1}).step()
    assert ((before - parameter).mean() / before.mean()).item() == pytest.approx(1e-6, rel=2e-3)


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharded_weights_step_as_whole_ones(dtype: torch.dtype) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    mesh, steps = init_device_mesh("cpu", (1,)), []
    whole = torch.nn.Parameter(torch.linspace(-1, 1, 96).view(8, 12).to(dtype))
    sharded = torch.nn.Parameter(distribute_tensor(whole.detach().clone(), mesh))
    for parameter in (whole, sharded):
        torch.manual_seed(5)
        optimizer = CompiledAdamW([parameter], SETTINGS | {"lr": 0.1})
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        steps.append(optimizer.state[parameter]["exp_avg"])
    assert torch.equal(sharded.to_local(), whole)
    assert torch.equal(*steps)


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
