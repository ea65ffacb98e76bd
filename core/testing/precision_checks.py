"""What ``init_device`` pins, seen in the products themselves."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from core.testing.check import DeviceScene, FailedError

FP32_ERROR = 3e-5
"""Relative error of products: about 3e-7 was seen in fp32, 3e-4 in TF32, 3e-3 in bf16."""
TF32_ERROR = 2e-3
BF16_ERROR = 2e-2

Product = Callable[[Tensor, Tensor], Tensor]
PRODUCTS: dict[str, tuple[Product, tuple[int, ...], tuple[int, ...]]] = {
    "mm": (torch.mm, (256, 1024), (1024, 256)),
    "bmm": (torch.bmm, (4, 128, 512), (4, 512, 128)),
    "linear": (F.linear, (4, 64, 512), (256, 512)),
    "conv2d": (F.conv2d, (2, 64, 16, 16), (64, 64, 3, 3)),
}
"""Each with the shapes of its operands; libraries have switches of their own for convolutions."""
CAN_BE_MISSING = ("conv2d",)
"""A device without it has nothing to pin there; a decoder does without."""


def fp32_is_fp32(scene: DeviceScene) -> str:
    """Every kind of product has fp32's error."""
    errors = product_errors(scene.torch_device)
    for name, error in errors.items():
        if error > FP32_ERROR:
            raise FailedError(
                f"an fp32 {name} is off by {error:.1e}, over {FP32_ERROR:.0e}: it runs in a reduced precision "
                f"(math_mode says {scene.device.math_mode})"
            )
    return told(errors)


def tf32_is_tf32(scene: DeviceScene) -> str:
    """Products have TF32's error at most, and where the chip has a TF32 peak, really are TF32."""
    errors = product_errors(scene.torch_device)
    for name, error in errors.items():
        if error > TF32_ERROR:
            raise FailedError(f"under tf32, a {name} is off by {error:.1e}, over {TF32_ERROR:.0e}")
    has_peak = scene.plan.chip.peak("tf32").tflops is not None and not scene.device.emulated
    if has_peak and errors["mm"] <= FP32_ERROR:
        raise FailedError(f"under tf32, a product is off by {errors['mm']:.1e} only: it runs in fp32")
    return told(errors)


def autocast_is_bf16(scene: DeviceScene) -> str:
    """Under autocast a linear layer computes in bf16, and gradients of fp32 weights are fp32."""
    device = scene.torch_device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[scene.plan.hyper_parameters.autocast_dtype]
    inputs, weight = _operands((32, 512), (256, 512))
    exact = F.linear(inputs.double(), weight.double())
    on_device = weight.to(device).requires_grad_()
    with torch.autocast(device.type, dtype=dtype):
        out = F.linear(inputs.to(device), on_device)
    if out.dtype is not dtype:
        raise FailedError(f"under torch.autocast({device.type!r}, {dtype}) a linear layer gives {out.dtype}")
    error = relative_error(out, exact)
    if error > BF16_ERROR:
        raise FailedError(f"under autocast a linear layer is off by {error:.1e}, over {BF16_ERROR:.0e}")
    torch.autograd.backward(out.float().square().mean())
    if on_device.grad is None or on_device.grad.dtype is not torch.float32:
        kind = None if on_device.grad is None else on_device.grad.dtype
        raise FailedError(f"under autocast the gradient of an fp32 weight is {kind}")
    return f"{dtype}, error {error:.1e}"


def product_errors(device: torch.device) -> dict[str, float]:
    """Each product's relative error (of the Frobenius norm) in fp32 on ``device``, against fp64 on the CPU.

    Without what the device has no operator for.
    """
    errors = {}
    for name, (product, left, right) in PRODUCTS.items():
        a, b = _operands(left, right)
        try:
            found = product(a.to(device), b.to(device))
        except NotImplementedError:
            if name not in CAN_BE_MISSING:
                raise
        else:
            errors[name] = relative_error(found, product(a.double(), b.double()))
    return errors


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of ``exact`` (fp64, on the CPU)."""
    return float((found.detach().cpu().double() - exact).norm() / exact.norm())


def told(errors: dict[str, float]) -> str:
    """For a report."""
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())


def _operands(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(left, generator=generator), torch.randn(right, generator=generator)
