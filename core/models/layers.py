"""Layers that every decoder shares: RMSNorm, the gated MLP, and rotary position embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of the rotation angles, each fp32 ``[S, 1, head_size]``."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight per channel (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalises the last dimension; shape and type stay, the mean square is accumulated in fp32."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``, all without bias (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        gated: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return gated


def rotary_tables(length: int, head_size: int, theta: float, device: torch.device) -> Rotary:
    """Angles of positions 0 to ``length - 1`` (Su et al. 2021, arXiv:2104.09864).

    In the layout of the released checkpoints: channel i turns together with channel i + head_size / 2.
    """
    exponent = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    position = torch.arange(length, device=device, dtype=torch.float32)
    angle = torch.outer(position, theta**-exponent)
    angle = torch.cat((angle, angle), dim=-1).unsqueeze(1)
    return angle.cos(), angle.sin()


def rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """Turns queries or keys ``[B, S, heads, head_size]``, in fp32, back in their own type."""
    cos, sin = rotary
    first, second = states.chunk(2, dim=-1)
    turned = states * cos + torch.cat((-second, first), dim=-1) * sin
    return turned.to(states.dtype)
