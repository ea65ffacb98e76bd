"""Llama 2 (Touvron et al. 2023, arXiv:2307.09288), with the released checkpoints' parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from core.models.attention import AttentionContext, attend
from core.models.decoder import Decoder
from schemas.model import DecoderSpec


class LlamaAttention(nn.Module):
    """Grouped-query attention with separate projections."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        # Given in full: from a size that is left open, a compiler of varying lengths makes symbols of head counts.
        self.heads = (spec.num_heads, spec.head_size)
        self.kv_heads = (spec.num_kv_heads, spec.head_size)
        kv_size = spec.num_kv_heads * spec.head_size
        self.q_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=False)

    def forward(self, hidden: Tensor, context: AttentionContext) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        query = self.q_proj(hidden).unflatten(-1, self.heads)
        key = self.k_proj(hidden).unflatten(-1, self.kv_heads)
        value = self.v_proj(hidden).unflatten(-1, self.kv_heads)
        out: Tensor = self.o_proj(attend(query, key, value, context))
        return out


class Llama2(Decoder):
    """Llama 2 of any size; transformers' ``LlamaForCausalLM`` has the same names and results."""

    attention_type = LlamaAttention

    def transformers_config(self) -> dict[str, object] | None:
        """Of ``LlamaForCausalLM``, from version 4.31 on (the first with grouped-query attention)."""
        spec = self.spec
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size,
            "num_hidden_layers": spec.num_layers,
            "num_attention_heads": spec.num_heads,
            "num_key_value_heads": spec.num_kv_heads,
            "vocab_size": spec.vocab_size,
            "max_position_embeddings": spec.max_positions,
            "rope_theta": spec.rope_theta,
            "rms_norm_eps": spec.norm_eps,
            "initializer_range": spec.initializer_range,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
        }
