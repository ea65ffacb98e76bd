"""Times on the device at hand what a step is made of: matrix products, fused attention, a copy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        """Of the product itself, of its input's gradient and, where it is trained, of its weight's."""
        inputs = self._random(product.tokens, product.inputs)
        weight = self._random(product.outputs, product.inputs)
        gradient = self._random(product.tokens, product.outputs)
        steps: list[Callable[[], object]] = [lambda: inputs @ weight.t(), lambda: gradient @ weight]
        if product.trained:
            steps.append(lambda: gradient.t() @ inputs)
        return tuple(self.time_s(step) for step in steps)

    def attention_s(self, shape: AttentionShape) -> tuple[float, str]:
        """Forward and backward of the fastest fused kernel, and which it is."""
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

        def both() -> None:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=gqa)
            torch.autograd.grad(out, (query, key, value), gradient)

        return self.time_s(both)

    def _random(self, *shape: int) -> Tensor:
        # Numbers like those of training: products of zeros take less power, and the chip would run faster.
        return torch.randn(*shape, device=self._device, dtype=self._dtype, generator=self._generator)


@contextmanager
def _no_choice() -> Iterator[None]:
    yield
