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

ROWS, COLUMNS = 0, 1

View = Callable[[Tensor], Tensor]
"""Of a tensor in a parameter's shape (the parameter, or a moment of it), the elements that one piece fills."""


@dataclass(frozen=True)
class Split:
    """This rank's place among the tensor parallel ranks."""

    rank: int
    size: int


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor of the checkpoint, and where this rank's part of them lies."""

    parameter: nn.Parameter
    view: View
    split_dim: int | None
    """Of the view: the dimension that is split over the tensor parallel ranks; None where each has all of it."""
    shape: tuple[int, ...]
    """Of the rows."""

    def part(self, rows: Tensor, split: Split) -> Tensor:
        """This rank's part of the whole ``rows``, in the shape of its view."""
        if self.split_dim is None:
            return rows
        shape = list(self.view(self.parameter.detach()).shape)
        shape[self.split_dim] *= split.size
        return rows.reshape(shape).chunk(split.size, self.split_dim)[split.rank]

    def whole(self, parts: list[Tensor]) -> Tensor:
        """The rows, from the parts of all tensor parallel ranks."""
        joined = parts[0] if self.split_dim is None else torch.cat(parts, self.split_dim)
        return joined.reshape(self.shape)


@dataclass(frozen=True)
class Released:
    """One tensor of the checkpoint: its pieces, from the first row on."""

    split: Split
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        first = self.pieces[0].shape
        return torch.Size((sum(piece.shape[0] for piece in self.pieces), *first[1:]))

    @property
    def device(self) -> torch.device:
        """Where this rank's part lies."""
        return self.pieces[0].parameter.device

    def parts(self, full: Tensor) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece, and this rank's part of its rows of ``full``."""
        for piece, rows in zip(
            self.pieces, torch.split(full, [piece.shape[0] for piece in self.pieces]), strict=True
        ):
            yield piece, piece.part(rows, self.split)


def place(target: Released, full: Tensor) -> None:
    """Copy this rank's part of ``full`` into the parameters."""
    for piece, part in target.parts(full):
        piece.view(piece.parameter.detach()).copy_(part)


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
    """The checkpoint's tensors that lie in ``model``, one stage."""
    hidden, words = spec.hidden_size, spec.vocab_size

    def released(*pieces: Piece) -> Released:
        return Released(split, pieces)

    if model.pre_process:
        embedding = model.embedding.word_embeddings.weight
        yield "model.embed_tokens.weight", released(Piece(embedding, _all, ROWS, (words, hidden)))
    for layer in model.decoder.layers:
        prefix = f"model.layers.{layer.layer_number - 1}."
        for name, pieces in _layer_tensors(layer, spec, attention, split):
            yield f"{prefix}{name}.weight", released(*pieces)
    if model.post_process:
        yield "model.norm.weight", released(Piece(model.decoder.final_layernorm.weight, _all, None, (hidden,)))
        yield "lm_head.weight", released(Piece(model.output_layer.weight, _all, ROWS, (words, hidden)))


def _layer_tensors(
    layer: Any, spec: DecoderSpec, attention: type[nn.Module], split: Split
) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    hidden, ffn = spec.hidden_size, spec.intermediate_size
    projections = _projections(layer.self_attention.linear_qkv.weight, spec, split)
    if attention is LlamaAttention:
        for name, piece in zip(("q_proj", "k_proj", "v_proj"), projections, strict=True):
            yield f"self_attn.{name}", (piece,)
    else:
        yield "self_attn.W_pack", projections
    output, down = layer.self_attention.linear_proj.weight, layer.mlp.linear_fc2.weight
    yield "self_attn.o_proj", (Piece(output, _all, COLUMNS, (hidden, hidden)),)
    for half, name in enumerate(("mlp.gate_proj", "mlp.up_proj")):
        yield name, (Piece(layer.mlp.linear_fc1.weight, partial(_half, half), ROWS, (ffn, hidden)),)
    yield "mlp.down_proj", (Piece(down, _all, COLUMNS, (hidden, ffn)),)
    yield "input_layernorm", (Piece(layer.input_layernorm.weight, _all, None, (hidden,)),)
    yield "post_attention_layernorm", (Piece(layer.pre_mlp_layernorm.weight, _all, None, (hidden,)),)


def _projections(fused: nn.Parameter, spec: DecoderSpec, split: Split) -> tuple[Piece, Piece, Piece]:
    """Queries, keys and values in the fused matrix, whose groups are split over the ranks."""
    hidden, kv_size = spec.hidden_size, spec.num_kv_heads * spec.head_size
    per_group = spec.num_heads // spec.num_kv_heads
    groups = (spec.num_kv_heads // split.size, per_group + 2, spec.head_size, hidden)
    queries, key, value = slice(0, per_group), slice(per_group, per_group + 1), slice(per_group + 1, None)
    return (
        Piece(fused, partial(_of_groups, groups, queries), ROWS, (hidden, hidden)),
        Piece(fused, partial(_of_groups, groups, key), ROWS, (kv_size, hidden)),
        Piece(fused, partial(_of_groups, groups, value), ROWS, (kv_size, hidden)),
    )


def _all(tensor: Tensor) -> Tensor:
    return tensor


def _half(number: int, tensor: Tensor) -> Tensor:
    return tensor.chunk(2)[number]


def _of_groups(groups: tuple[int, ...], heads: slice, tensor: Tensor) -> Tensor:
    """These heads of every group."""
    return tensor.view(groups)[:, heads]
