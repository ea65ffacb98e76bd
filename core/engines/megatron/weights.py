"""Where each tensor of a released checkpoint lies in the stages of a Megatron model.

Megatron keeps queries, keys and values in one matrix, group by group (the queries that share a key, the key, the
value), the gate above the up projection, and of all of them this tensor parallel rank's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor, nn

from core.models.llama import LlamaAttention
from schemas.model import DecoderSpec

Select = Callable[[Tensor], Tensor]
"""From a full tensor, this rank's part of it."""
Piece = tuple[Tensor, Select]
"""A view of this rank's parameter, and what of the full tensor fills it."""


@dataclass(frozen=True)
class Released:
    """One tensor of the checkpoint, and this rank's views of what it fills."""

    shape: torch.Size
    device: torch.device
    pieces: tuple[Piece, ...]


def place(target: Released, full: Tensor) -> None:
    """Copy this rank's part of ``full`` to where it belongs."""
    with torch.no_grad():
        for view, select in target.pieces:
            view.copy_(select(full))


@dataclass(frozen=True)
class Split:
    """This rank's place among the tensor parallel ranks."""

    rank: int
    size: int

    def rows(self, full: Tensor) -> Tensor:
        """Its part of the first dimension."""
        return full.chunk(self.size, dim=0)[self.rank]

    def columns(self, full: Tensor) -> Tensor:
        """Its part of the second dimension."""
        return full.chunk(self.size, dim=1)[self.rank]


def released_names(spec: DecoderSpec, attention: type[nn.Module]) -> set[str]:
    """All tensors of the checkpoint of a model whose attention is of this type."""
    packed = ("W_pack",) if attention is not LlamaAttention else ("q_proj", "k_proj", "v_proj")
    in_layer = [f"self_attn.{name}" for name in (*packed, "o_proj")]
    in_layer += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    layers = {f"model.layers.{layer}.{name}.weight" for layer in range(spec.num_layers) for name in in_layer}
    return layers | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def released_tensors(
    model: GPTModel, spec: DecoderSpec, attention: type[nn.Module], split: Split
) -> Iterator[tuple[str, Released]]:
    """The checkpoint's tensors that lie in ``model``, one stage, with their full shapes."""
    hidden, words = spec.hidden_size, spec.vocab_size
    if model.pre_process:
        embedding = model.embedding.word_embeddings.weight
        yield "model.embed_tokens.weight", _one(embedding, (words, hidden), split.rows)
    for layer in model.decoder.layers:
        prefix = f"model.layers.{layer.layer_number - 1}."
        for name, tensor in _layer_tensors(layer, spec, attention, split):
            yield f"{prefix}{name}.weight", tensor
    if model.post_process:
        yield "model.norm.weight", _one(model.decoder.final_layernorm.weight, (hidden,), _whole)
        yield "lm_head.weight", _one(model.output_layer.weight, (words, hidden), split.rows)


def _layer_tensors(
    layer: Any, spec: DecoderSpec, attention: type[nn.Module], split: Split
) -> Iterator[tuple[str, Released]]:
    hidden, ffn = spec.hidden_size, spec.intermediate_size
    yield from _projections(layer.self_attention.linear_qkv.weight, spec, attention, split)
    yield "self_attn.o_proj", _one(layer.self_attention.linear_proj.weight, (hidden, hidden), split.columns)
    gate, up = layer.mlp.linear_fc1.weight.detach().chunk(2)
    yield "mlp.gate_proj", _one(gate, (ffn, hidden), split.rows)
    yield "mlp.up_proj", _one(up, (ffn, hidden), split.rows)
    yield "mlp.down_proj", _one(layer.mlp.linear_fc2.weight, (hidden, ffn), split.columns)
    yield "input_layernorm", _one(layer.input_layernorm.weight, (hidden,), _whole)
    yield "post_attention_layernorm", _one(layer.pre_mlp_layernorm.weight, (hidden,), _whole)


def _projections(
    fused: Tensor, spec: DecoderSpec, attention: type[nn.Module], split: Split
) -> Iterator[tuple[str, Released]]:
    """Queries, keys and values in the fused matrix: from a tensor each, or from one that holds them in turn."""
    hidden, kv_size = spec.hidden_size, spec.num_kv_heads * spec.head_size
    sizes = (hidden, kv_size, kv_size)
    per_group = spec.num_heads // spec.num_kv_heads
    groups = fused.detach().view(spec.num_kv_heads // split.size, per_group + 2, spec.head_size, hidden)
    views = (groups[:, :per_group], groups[:, per_group], groups[:, per_group + 1])
    if attention is LlamaAttention:
        for name, view, size in zip(("q_proj", "k_proj", "v_proj"), views, sizes, strict=True):
            yield f"self_attn.{name}", _one(view, (size, hidden), partial(_groups_of, view.shape, split))
        return

    def part(number: int, full: Tensor) -> Tensor:
        return _groups_of(views[number].shape, split, torch.split(full, list(sizes))[number])

    pieces = tuple((view, partial(part, number)) for number, view in enumerate(views))
    yield "self_attn.W_pack", Released(torch.Size((sum(sizes), hidden)), fused.device, pieces)


def _groups_of(shape: torch.Size, split: Split, projection: Tensor) -> Tensor:
    """This rank's groups of a full projection, in the shape of their view."""
    return split.rows(projection.reshape(shape[0] * split.size, *shape[1:]))


def _whole(full: Tensor) -> Tensor:
    return full


def _one(view: Tensor, shape: tuple[int, ...], select: Select) -> Released:
    return Released(torch.Size(shape), view.device, ((view.detach(), select),))
