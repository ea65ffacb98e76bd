"""Causal attention in four kinds (eager, sdpa, flex, vendor), with rotary positions or an ALiBi bias.

What the kinds need beside queries, keys and values depends on the sequence length only, so it is built
once, outside of the (compiled) blocks, and shared by all layers: :class:`AttentionContext`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from core.models.layers import Rotary, rotary_tables, rotate
from core.models.rows import put, take
from schemas.hyperparameters import Attention
from schemas.model import DecoderSpec

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""A vendor's own fused causal attention of query ``[B, heads, S, D]``, key and value ``[B, kv_heads, S, D]`` with
ALiBi's slopes, fp32 ``[heads]``, or None. Scores are scaled by 1/sqrt(D); the result has the query's shape."""


# Not a tuple or dict: FSDP's mixed precision casts every fp32 tensor that it finds in a block's arguments.
@dataclass(frozen=True, eq=False)
class AttentionContext:
    """Position information for one sequence length on one device."""

    kind: Attention
    rotary: Rotary | None = None
    bias: Tensor | None = None
    """Added to the scores, ``[1 or B, heads or 1, S, S]``: ALiBi, and -inf where nothing is seen."""
    slopes: Tensor | None = None
    """ALiBi's slope per head, fp32 ``[heads]`` (flex, vendor)."""
    block_mask: BlockMask | None = None
    flex: Callable[..., Tensor] | None = None
    """FlexAttention, compiled: without it, it would write out all S x S scores."""
    kernel: Kernel | None = None
    """The vendor's (vendor)."""
    contiguous: bool = False
    """Whether a row of ``block_mask`` has no holes, in its partial blocks as in its full ones (flex)."""
    rows: Tensor | None = None
    """``[B, S]``, where queries come without padding, as ``[1, M, ...]``; only its shape matters."""
    positions: Tensor | None = None
    """Where these M tokens stand in the flattened rows."""


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each head (Press et al. 2021, arXiv:2108.12409), as Bloom, MPT and Baichuan2 use it.

    A geometric series from 2^(-8/n) to 2^-8. Where the number of heads is no power of two, the series of
    the closest smaller power comes first, then every other slope of the series twice as long.
    """

    def series(heads: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]

    closest: int = 2 ** math.floor(math.log2(num_heads))
    return series(closest) + series(2 * closest)[::2][: num_heads - closest]


ALL_HEADS = slice(None)


def build_context(  # noqa: PLR0913 - what the context depends on
    spec: DecoderSpec,
    kind: Attention,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: slice = ALL_HEADS,
) -> AttentionContext:
    """What attention over ``length`` tokens needs; ``dtype`` is what the queries will come in.

    ``heads`` are those of the model's heads that this process has, where they are split over several.
    """
    # A tensor made in inference mode could not be used by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        rotary = slopes = None
        if spec.position == "rope":
            rotary = rotary_tables(length, spec.head_size, spec.rope_theta, device)
        else:
            slopes = torch.tensor(alibi_slopes(spec.num_heads)[heads], device=device, dtype=torch.float32)
        if kind == "flex":
            mask = create_block_mask(_causal, None, None, length, length, device=device)
            # A last block that is not whole is partial for every key, beyond the full ones behind the diagonal.
            whole = all(length % size == 0 for size in mask.BLOCK_SIZE)
            flex = torch.compile(flex_attention)
            return AttentionContext(kind, rotary, None, slopes, mask, flex, contiguous=whole)
        if kind == "vendor" or (kind == "sdpa" and slopes is None):
            return AttentionContext(kind, rotary, slopes=slopes)
        bias = _causal_bias(slopes, length, device)
        return AttentionContext(kind, rotary, bias if kind == "eager" else bias.to(dtype))


def within_documents(context: AttentionContext, document_ids: Tensor, dtype: torch.dtype) -> AttentionContext:
    """``context`` for sequences of several documents ``[B, S]``, none of which sees another.

    Positions need not start anew: rotary angles and ALiBi depend on the distance of two tokens only. ``dtype`` is
    what the queries come in, autocast aside.
    """
    batch, length = document_ids.shape
    if context.kind == "flex":

        def same_document(b: Tensor, head: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
            return (q_index >= kv_index) & (document_ids[b, q_index] == document_ids[b, kv_index])

        mask = create_block_mask(same_document, batch, None, length, length, device=document_ids.device)
        return replace(context, block_mask=mask, contiguous=False)
    other = document_ids[:, None, :, None] != document_ids[:, None, None, :]
    if context.bias is not None:
        return replace(context, bias=context.bias.masked_fill(other, -math.inf))
    device = document_ids.device
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return replace(context, bias=_causal_bias(None, length, device).to(dtype).masked_fill(other, -math.inf))


class ContextCache:
    """The context of the length, device and type that were asked for last; an S x S bias can be large."""

    def __init__(self, spec: DecoderSpec, kind: Attention, heads: slice = ALL_HEADS) -> None:
        self._spec, self._kind, self._heads = spec, kind, heads
        self.kernel: Kernel | None = None
        """The vendor's, for the kind ``vendor``."""
        self._last: tuple[tuple[int, torch.device, torch.dtype], AttentionContext] | None = None

    def get(self, length: int, device: torch.device, dtype: torch.dtype) -> AttentionContext:
        """As :func:`build_context`."""
        key = (length, device, dtype)
        if self._last is None or self._last[0] != key:
            self._last = None
            context = build_context(self._spec, self._kind, *key, heads=self._heads)
            self._last = key, replace(context, kernel=self.kernel)
        return self._last[1]


def attend(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    """Causal attention of query ``[B, S, heads, D]`` to key and value ``[B, S, kv_heads, D]``.

    Returns ``[B, S, heads * D]``. Scores are scaled by 1/sqrt(D); a key-value head serves heads / kv_heads
    consecutive query heads. With ``context.rows`` tokens come, and go, without padding: ``[1, M, ...]``.
    """
    if context.rows is not None and context.positions is not None:
        rows, positions = context.rows, context.positions
        query, key, value = (put(states, positions, rows) for states in (query, key, value))
        return take(_attend_rows(query, key, value, context), positions)
    return _attend_rows(query, key, value, context)


def _attend_rows(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    if context.rotary is not None:
        query, key = rotate(query, context.rotary), rotate(key, context.rotary)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    out = _KINDS[context.kind](query, key, value, context)
    return out.transpose(1, 2).flatten(2)


def _eager(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    assert context.bias is not None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-2, -1)).float() / math.sqrt(query.shape[-1])
    weights = torch.softmax(scores + context.bias, dim=-1)
    return torch.matmul(weights.to(value.dtype), value)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    # Asked for only where it is needed: not every vendor's kernel takes fewer key-value heads.
    gqa = query.shape[1] != key.shape[1]
    if context.bias is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=gqa)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=context.bias, enable_gqa=gqa)


def _flex(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    assert context.flex is not None
    slopes = context.slopes

    # Of the key's position alone: softmax does not change when a row is shifted, scores are fp32 here, and a
    # kernel computes one number a column in the place of one a score.
    def alibi(score: Tensor, batch: Tensor, head: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
        return score + slopes[head] * kv_index  # type: ignore[index]

    return context.flex(
        query,
        key,
        value,
        score_mod=None if slopes is None else alibi,
        block_mask=context.block_mask,
        enable_gqa=query.shape[1] != key.shape[1],
        # Every token sees itself at least. Told of no holes where there are some, gradients are wrong.
        kernel_options={"ROWS_GUARANTEED_SAFE": True, "BLOCKS_ARE_CONTIGUOUS": context.contiguous},
    )


def _vendor(query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    assert context.kernel is not None
    return context.kernel(query, key, value, context.slopes)


_KINDS: dict[Attention, Callable[[Tensor, Tensor, Tensor, AttentionContext], Tensor]] = {
    "eager": _eager,
    "sdpa": _sdpa,
    "flex": _flex,
    "vendor": _vendor,
}


def _causal(batch: Tensor, head: Tensor, q_index: Tensor, kv_index: Tensor) -> Tensor:
    return q_index >= kv_index


def _causal_bias(slopes: Tensor | None, length: int, device: torch.device) -> Tensor:
    """``slope * (key - query)``, or 0, with -inf above the diagonal; fp32 ``[1, heads or 1, S, S]``.

    Softmax does not change when a row is shifted, so this equals the released models' ``slope * key``. But it
    is small where attention is large: in bf16, ``slope * key`` of a late key is off by up to 4.
    """
    position = torch.arange(length, device=device, dtype=torch.float32)
    distance = position[None, :] - position[:, None]
    bias = torch.zeros_like(distance)[None] if slopes is None else slopes[:, None, None] * distance
    return bias.masked_fill_(distance > 0, -math.inf).unsqueeze(0)
