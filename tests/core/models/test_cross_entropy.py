"""The chunked loss against the full one, and both against their definition."""

from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch")

from core import memory_estimate
from core.models import cross_entropy as module
from core.models.cross_entropy import chunked_cross_entropy, full_cross_entropy

pytestmark = pytest.mark.timeout(120)
TOKENS, HIDDEN, VOCABULARY = 23, 16, 31


def _inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    labels[[0, 5, 8, 9, 10, 11, 22]] = -100
    return hidden, weight, labels


def _gradients(loss, inputs, z_loss, scale=1.0):
    hidden, weight, labels = inputs
    objective, cross_entropy = loss(hidden, weight, labels, z_loss)
    found = torch.autograd.grad(objective * scale, (hidden, weight))
    return objective.detach(), cross_entropy.detach(), *found


def test_plans_reckon_with_the_same_chunks() -> None:
    """Planning imports no torch, and so has the number for itself."""
    assert memory_estimate.LOSS_CHUNK_TOKENS == module.CHUNK_TOKENS


@pytest.mark.parametrize("loss", [full_cross_entropy, chunked_cross_entropy])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_sums_are_those_of_the_definition(loss, z_loss):
    hidden, weight, labels = _inputs()
    expected_entropy = expected_z = 0.0
    for row, label in zip(hidden.double() @ weight.double().T, labels.tolist(), strict=True):
        if label != -100:
            lse = row.exp().sum().log()
            expected_entropy += (lse - row[label]).item()
            expected_z += lse.square().item()
    objective, cross_entropy = loss(hidden, weight, labels, z_loss)
    assert objective.dtype == cross_entropy.dtype == torch.float32
    assert cross_entropy.item() == pytest.approx(expected_entropy, rel=1e-6)
    assert objective.item() == pytest.approx(expected_entropy + z_loss * expected_z, rel=1e-6)
    assert (objective is cross_entropy) == (z_loss == 0)
    assert objective.requires_grad
    assert cross_entropy.requires_grad == (z_loss == 0)


@pytest.mark.parametrize("chunk", [1, 4, 7, 23, 64])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_chunks_change_neither_loss_nor_gradients(monkeypatch, chunk, z_loss):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    inputs = _inputs()
    expected = _gradients(full_cross_entropy, inputs, z_loss, scale=0.37)
    found = _gradients(chunked_cross_entropy, inputs, z_loss, scale=0.37)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_compiling_changes_neither_loss_nor_gradients(monkeypatch, z_loss, compiler):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 7)
    inputs = _inputs()
    expected = _gradients(full_cross_entropy, inputs, z_loss, scale=0.37)
    found = _gradients(functools.partial(chunked_cross_entropy, compiled=True), inputs, z_loss, scale=0.37)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_as_close_to_fp32_as_the_full_loss(monkeypatch, chunk, dtype):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    inputs = _inputs(dtype)
    exact = tuple(value.detach().float().requires_grad_() for value in inputs[:2])
    expected = _gradients(full_cross_entropy, (*exact, inputs[2]), 0.01)
    full = _gradients(full_cross_entropy, inputs, 0.01)
    chunked = _gradients(chunked_cross_entropy, inputs, 0.01)
    for ours, theirs, truth in zip(chunked, full, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm() + 1e-3 * truth.norm()


@pytest.mark.parametrize("chunk", [512, 4096])
def test_an_fp16_gradient_may_leave_fp16s_range_until_it_is_scaled(monkeypatch, chunk):
    """The label's row sums to 245,000 over all tokens; divided by their number it is 60 again."""
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    hidden = torch.full((4096, 4), 60.0, dtype=torch.float16)
    weight = torch.zeros(8, 4, dtype=torch.float16, requires_grad=True)
    objective, _ = chunked_cross_entropy(hidden, weight, torch.full((4096,), 3), 0.0)
    (objective / 4096).backward()
    assert weight.grad[3].tolist() == pytest.approx([-60 * 7 / 8] * 4, rel=1e-3)


def test_autocast_runs_products_in_its_type_and_returns_gradients_in_the_parameters(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 5)
    inputs = _inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = _gradients(full_cross_entropy, inputs, 0.01)
        chunked = _gradients(chunked_cross_entropy, inputs, 0.01)
    exact = _gradients(full_cross_entropy, inputs, 0.01)
    for ours, theirs, truth in zip(chunked, full, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02 * truth.abs().max().item())
    assert not torch.equal(chunked[2], exact[2])


def test_a_frozen_head_gets_no_gradient_and_its_input_the_same(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 5)
    hidden, weight, labels = _inputs()
    _, _, expected, _ = _gradients(full_cross_entropy, (hidden, weight, labels), 0.0)
    objective, _ = chunked_cross_entropy(hidden, weight.detach(), labels, 0.0)
    torch.testing.assert_close(torch.autograd.grad(objective, hidden)[0], expected, rtol=1e-5, atol=1e-5)


def test_without_gradients_the_loss_is_the_same():
    inputs = _inputs()
    with torch.no_grad():
        objective, _ = chunked_cross_entropy(*inputs, 0.01)
    assert not objective.requires_grad
    torch.testing.assert_close(objective, full_cross_entropy(*inputs, 0.01)[0].detach())


@pytest.mark.parametrize("compiled", [False, True])
def test_a_second_backward_fails_instead_of_scaling_twice(compiled, compiler):
    hidden, weight, labels = _inputs()
    objective, _ = chunked_cross_entropy(hidden, weight, labels, 0.0, compiled)
    objective.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        objective.backward()


def test_only_ignored_labels_give_zero():
    hidden, weight, labels = _inputs()
    found = _gradients(chunked_cross_entropy, (hidden, weight, torch.full_like(labels, -100)), 0.01)
    assert all(value.abs().max() == 0 for value in found)
