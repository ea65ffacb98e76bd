"""Products with the blocks' weights in 8 bits, by torchao: dynamic scales, one a tensor (arXiv 2209.05433).

Activations and weights are rounded to e4m3, gradients to e5m2. As torchao's recipe ``tensorwise`` has it, the
forward pass sums by the units' fast accumulation, which keeps fewer bits than fp32 on Hopper, and the backward
pass does not. Parameters, their gradients, attention, norms and the output head stay as under ``bf16``.
"""

from __future__ import annotations

import torch

from core.errors import UsageError
from core.models.decoder import Decoder
from core.models.products import TRIED_SIZE


def use_fp8(model: Decoder, device: torch.device) -> None:
    """Swap the linear layers of the blocks, which may be on meta.

    UsageError where ``device`` has no such products; the plan has seen to the sizes. Call it before blocks are
    compiled or sharded. Names and types of parameters stay.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    _require_products(device)
    config = Float8LinearConfig.from_recipe_name("tensorwise")
    for block in model.blocks:
        convert_to_float8_training(block, config=config)


def _require_products(device: torch.device) -> None:
    try:
        ones = torch.ones(TRIED_SIZE, TRIED_SIZE, device=device).to(torch.float8_e4m3fn)
        scale = torch.ones((), device=device)
        torch._scaled_mm(ones, ones.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{device} has no products in 8 bits: {reason}", "plan precision bf16") from error
