"""Sums of matrix products in fp32, whatever type their operands come in."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

TRIED_SIZE = 16
"""Rows and columns of the products that a device is tried with."""


def add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """``total + left @ right`` in fp32: ``[M, N]``, in ``total``'s memory; None begins a sum.

    ``left`` is ``[M, K]``, ``right`` ``[K, N]``, both of one type. Where the device has products of 16-bit
    operands with an fp32 result, none is rounded to 16 bits, and the product itself adds to what is there;
    elsewhere each is written, read and added.
    """
    if left.dtype == torch.float32:
        return left @ right if total is None else total.addmm_(left, right)
    if has_fp32_products(left.device, left.dtype):
        if total is None:
            return torch.mm(left, right, out_dtype=torch.float32)
        return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    if left.dtype == torch.float16:  # whose range a sum over many tokens can leave
        left, right = left.float(), right.float()
    product = left @ right
    return product.float() if total is None else total.add_(product)


@functools.cache
def has_fp32_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of ``dtype`` operands can be added to an fp32 tensor on ``device``, by trying it.

    Only devices with kernels for it are tried: one that takes what it lacks to the host would warn of that.
    """
    key = torch._C._dispatch_key_for_device(device.type)
    kernels = ("aten::mm.dtype", "aten::addmm.dtype_out")
    if not all(torch._C._dispatch_has_kernel_for_dispatch_key(kernel, key) for kernel in kernels):
        return False
    operand = torch.zeros(TRIED_SIZE, TRIED_SIZE, dtype=dtype, device=device)
    try:
        total = torch.mm(operand, operand, out_dtype=torch.float32)
        torch.addmm(total, operand, operand, out_dtype=torch.float32, out=total)
    except RuntimeError:  # of bf16, for one, on CUDA devices that have no units for it
        return False
    return True
