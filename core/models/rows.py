"""Sequences of unlike length without their padding: one row of tokens, and the way to padded rows and back.

Everything that treats each token by itself (projections, MLP, norms, the loss) then computes no padding. Attention
alone sees rows; both ways copy, for no two tokens share a place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def take(rows: Tensor, positions: Tensor) -> Tensor:
    """The tokens at ``positions``, int64 ``[M]``, all different, of ``rows`` ``[B, S, ...]``: ``[1, M, ...]``."""
    taken: Tensor = _Take.apply(rows.flatten(0, 1), positions)  # type: ignore[no-untyped-call]
    return taken.unsqueeze(0)


def put(tokens: Tensor, positions: Tensor, like: Tensor) -> Tensor:
    """``tokens`` ``[1, M, ...]`` where ``take`` took them from, in ``[B, S, ...]`` with B and S of ``like``."""
    count, length = like.shape
    empty = tokens.new_zeros(count * length, *tokens.shape[2:])
    return empty.index_copy(0, positions, tokens.squeeze(0)).view(count, length, *tokens.shape[2:])


class _Take(torch.autograd.Function):
    """As ``index_select``, whose gradient would be added up in case that two positions are the same."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.count = tokens.shape[0]
        return tokens.index_select(0, positions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        empty = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return empty.index_copy(0, positions, gradient), None
