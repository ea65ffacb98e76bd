"""Times on the device at hand what a step is made of: matrix products, fused attention, a copy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.clock import DeviceClock
from tests.benchmarks.step_parts import AttentionShape, Product

BATCHES = 5
COPY_BYTES = 1 << 30
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


class ChipSpeed:
    """Seconds of one part, by the mean of a run of about ``seconds``, the median of a few such."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
        self._device, self._dtype, self._seconds = device, dtype, seconds
        self._clock = DeviceClock(device)
        self._generator = torch.Generator(device).manual_seed(1)

    def product_s(self, product: Product) -> tuple[float, ...]:
        """Of the product itself, and of each of its gradients that there is."""
        inputs = self._random(product.tokens, product.inputs)
        weight = self._random(product.outputs, product.inputs)
        gradient = self._random(product.tokens, product.outputs)
        factors = {"forward": (inputs, weight.t()), "input": (gradient, weight), "weight": (gradient.t(), inputs)}
        return tuple(
            self.time_s(in_8_bits(*factors[which], forward=which == "forward"))
            if product.fp8
            else self.time_s(partial(torch.matmul, *factors[which]))
            for which in ("forward", *product.gradients)
        )

    def attention_s(self, shape: AttentionShape) -> tuple[float, str]:
        """All passes of the fastest fused kernel, and which it is."""
        found: dict[str, float] = {}
        for name, backend in self._backends():
            try:
                with backend():
                    found[name] = self._attention_s(shape)
            except RuntimeError:  # that kernel does not take this shape, or is not there
                continue
        name = min(found, key=lambda kernel: found[kernel])
        return found[name], name

    def bytes_per_s(self) -> float:
        """Of a large copy, which reads as much as it writes."""
        size = COPY_BYTES if self._device.type != "cpu" else COPY_BYTES // 8
        source = torch.zeros(size, dtype=torch.uint8, device=self._device)
        target = torch.empty_like(source)
        return 2 * size / self.time_s(lambda: target.copy_(source))

    def time_s(self, action: Callable[[], object]) -> float:
        """Of one ``action``; many are queued at once, as in a step."""
        action()
        times = max(1, int(self._seconds / BATCHES / max(self._batch_s(action, 3), 1e-9)))
        return statistics.median(self._batch_s(action, times) for _ in range(BATCHES))

    def _batch_s(self, action: Callable[[], object], times: int) -> float:
        begin = self._clock.mark()
        for _ in range(times):
            action()
        end = self._clock.mark()
        self._clock.wait(end)
        return self._clock.seconds_between(begin, end) / times

    def _backends(self) -> Iterator[tuple[str, Callable[[], object]]]:
        if self._device.type == "cpu":
            yield "default", _no_choice
            return
        for backend in BACKENDS:
            yield backend.name, lambda backend=backend: sdpa_kernel(backend)

    def _attention_s(self, shape: AttentionShape) -> float:
        def states(heads: int) -> Tensor:
            return self._random(shape.batch, heads, shape.length, shape.head_size).requires_grad_()

        query, key, value = states(shape.heads), states(shape.kv_heads), states(shape.kv_heads)
        gradient = self._random(shape.batch, shape.heads, shape.length, shape.head_size)
        gqa = shape.heads != shape.kv_heads

        def forward() -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=not shape.tower, enable_gqa=gqa)

        if shape.tower:
            with torch.no_grad():
                return self.time_s(forward)
        return self.time_s(lambda: torch.autograd.grad(forward(), (query, key, value), gradient))

    def _random(self, *shape: int) -> Tensor:
        # Numbers like those of training: products of zeros take less power, and the chip would run faster.
        return torch.randn(*shape, device=self._device, dtype=self._dtype, generator=self._generator)


def in_8_bits(left: Tensor, right: Tensor, *, forward: bool) -> Callable[[], Tensor]:
    """``left @ right`` as torchao's recipe ``tensorwise`` multiplies it, both cast and laid out beforehand.

    Gradients, always on the left, are rounded to e5m2; everything else to e4m3. Rows by columns is what Hopper
    multiplies. Only the forward product may be summed fast, with fewer bits.
    """
    rows, row_scale = _cast(left.contiguous(), torch.float8_e4m3fn if forward else torch.float8_e5m2)
    columns, column_scale = _cast(right.t().contiguous(), torch.float8_e4m3fn)
    scales = {"scale_a": row_scale, "scale_b": column_scale}
    return partial(torch._scaled_mm, rows, columns.t(), **scales, out_dtype=left.dtype, use_fast_accum=forward)


def _cast(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """In 8 bits, its largest number at the largest that there is, and what to multiply by to have it back."""
    scale = tensor.abs().amax().float() / torch.finfo(dtype).max
    return (tensor / scale).to(dtype), scale


@contextmanager
def _no_choice() -> Iterator[None]:
    yield
