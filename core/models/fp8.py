"""Products with the blocks' weights in 8 bits, by torchao: dynamic scales, one a tensor (arXiv 2209.05433).

Activations and weights are rounded to e4m3, gradients to e5m2, and summed in fp32; parameters, their gradients,
attention, norms and the output head stay as they are under precision ``bf16``.
"""

from __future__ import annotations

import torch
from torch import nn

from core.errors import UsageError
from core.models.decoder import Decoder

MULTIPLE = 16
"""What every dimension of a product in 8 bits must be a multiple of."""


def use_fp8(model: Decoder, device: torch.device) -> None:
    """Swap the linear layers of the blocks, which may be on meta.

    UsageError where ``device`` has no such products, or none of these sizes. Call it before blocks are compiled or
    sharded. Names and types of parameters stay.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    _require_products(device)
    config = Float8LinearConfig.from_recipe_name("tensorwise")
    for block in model.blocks:
        _require_sizes(block)
        convert_to_float8_training(block, config=config)


def _require_sizes(block: nn.Module) -> None:
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear) and (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE):
            raise UsageError(
                f"{name} is {layer.out_features} x {layer.in_features}, and products in 8 bits take multiples "
                f"of {MULTIPLE}",
                "plan precision bf16",
            )


def _require_products(device: torch.device) -> None:
    try:
        ones = torch.ones(MULTIPLE, MULTIPLE, device=device).to(torch.float8_e4m3fn)
        scale = torch.ones((), device=device)
        torch._scaled_mm(ones, ones.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{device} has no products in 8 bits: {reason}", "plan precision bf16") from error
