"""Sums of products in fp32: the same with and without a device's own kernels for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch")

from core.models import products
from core.models.products import add_product, has_fp32_products

CHUNKS, ROWS, INNER, COLUMNS = 4, 8, 64, 16


@pytest.fixture(autouse=True)
def _untried() -> Iterator[None]:
    has_fp32_products.cache_clear()
    yield
    has_fp32_products.cache_clear()


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Gives this CPU kernels that it lacks, until the test ends."""
    library = torch.library.Library("aten", "IMPL")
    yield lambda name, kernel: library.impl(name, kernel, "CPU")
    library._destroy()


def _mm(left, right, out_dtype):
    return left.to(out_dtype) @ right.to(out_dtype)


def _operands(dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    for _ in range(CHUNKS):
        left = torch.randn(INNER, ROWS, generator=generator).to(device, dtype).t()
        yield left, torch.randn(INNER, COLUMNS, generator=generator).to(device, dtype)


def _sum(dtype, device="cpu"):
    total = None
    for left, right in _operands(dtype, device):
        before, total = total, add_product(total, left, right)
        assert before is None or before is total
    assert total.dtype == torch.float32
    return total.cpu()


def _exact(dtype):
    return sum(left.double() @ right.double() for left, right in _operands(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_kernels_products_are_added_one_by_one(dtype):
    assert not has_fp32_products(torch.device("cpu"), dtype)
    expected = sum((left @ right).float() for left, right in _operands(dtype))
    torch.testing.assert_close(_sum(dtype), expected)


def test_without_kernels_no_product_is_rounded_to_fp16_whose_range_is_small():
    torch.testing.assert_close(_sum(torch.float16).double(), _exact(torch.float16), rtol=1e-5, atol=1e-5)
    large = torch.full((1, INNER), 60.0, dtype=torch.float16)
    assert add_product(None, large, large.t()).item() == 60.0 * 60.0 * INNER


def test_a_device_with_kernels_rounds_no_product(register):
    dtype = torch.bfloat16
    added = []

    def addmm(total, left, right, out_dtype, *, beta=1, alpha=1, out):
        assert out.data_ptr() == total.data_ptr()
        assert (out_dtype, beta, alpha) == (torch.float32, 1, 1)
        added.append(left.shape)
        return out.add_(_mm(left, right, out_dtype))

    plain = _sum(dtype)
    has_fp32_products.cache_clear()
    register("mm.dtype", _mm)
    register("addmm.dtype_out", addmm)
    fused, exact = _sum(dtype), _exact(dtype)
    torch.testing.assert_close(fused.double(), exact, rtol=1e-5, atol=1e-5)
    assert (fused - exact).abs().max() < 0.1 * (plain - exact).abs().max()
    tried = torch.Size((products.TRIED_SIZE,) * 2)
    assert added == [tried, *[torch.Size((ROWS, INNER))] * (CHUNKS - 1)]


def test_kernels_that_refuse_are_not_used(register):
    def refuses(*_, **__):
        raise RuntimeError("gemm input type at::BFloat16 and output type float is not supported by this device")

    expected = _sum(torch.bfloat16)
    has_fp32_products.cache_clear()
    register("mm.dtype", refuses)
    register("addmm.dtype_out", refuses)
    assert torch.equal(_sum(torch.bfloat16), expected)


@pytest.mark.gpu
def test_on_a_gpu_the_sum_is_at_least_as_close_as_without(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device, dtype = torch.device("cuda", 0), torch.bfloat16
    assert has_fp32_products(device, dtype)
    assert has_fp32_products(device, torch.float16)
    fused, exact = _sum(dtype, "cuda:0"), _exact(dtype)
    monkeypatch.setattr(products, "has_fp32_products", lambda *_: False)
    plain = _sum(dtype, "cuda:0")
    torch.testing.assert_close(fused.double(), exact, rtol=1e-4, atol=1e-4)
    assert (fused - exact).abs().max() <= (plain - exact).abs().max()
