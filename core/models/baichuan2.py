"""Baichuan 2 (Yang et al. 2023, arXiv:2309.10305), with the released checkpoints' parameter names.

Differs from Llama in one matrix for queries, keys and values (``W_pack``) and in a row-normalised output
weight (NormHead). The 13B model has ALiBi instead of rotary positions: ``spec.position``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.attention import AttentionContext, attend
from core.models.decoder import Decoder, Head
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec


class PackedAttention(nn.Module):
    """Attention whose queries, keys and values come out of one product, in that order."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        kv_size = spec.num_kv_heads * spec.head_size
        self.sizes = (spec.hidden_size, kv_size, kv_size)
        self.heads = [(size // spec.head_size, spec.head_size) for size in self.sizes]
        self.W_pack = nn.Linear(spec.hidden_size, sum(self.sizes), bias=False)
        self.o_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=False)

    def forward(self, hidden: Tensor, context: AttentionContext) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        query, key, value = (
            part.unflatten(-1, heads)
            for part, heads in zip(self.W_pack(hidden).split(self.sizes, dim=-1), self.heads, strict=True)
        )
        out: Tensor = self.o_proj(attend(query, key, value, context))
        return out


class NormHead(Head):
    """Logits with the rows of the weight scaled to length one (section 2.4 of the report)."""

    def __init__(self, spec: DecoderSpec, hp: HyperParameters) -> None:
        super().__init__(spec, hp)
        self._normalise: Callable[[Tensor], Tensor] = F.normalize

    def output_weight(self) -> Tensor:
        """The normalised weight ``[V, H]``; gradients flow through the normalisation."""
        return self._normalise(self.weight)

    def compile_parts(self) -> None:
        """Fuses the normalisation too: its backward alone would pass over the weight about ten times."""
        super().compile_parts()
        self._normalise = torch.compile(F.normalize)


class Baichuan2(Decoder):
    """Baichuan 2; with 40 layers, 40 heads and ALiBi it is Baichuan2-13B."""

    attention_type = PackedAttention
    head_type = NormHead
