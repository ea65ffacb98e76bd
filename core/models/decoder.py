"""The base of all decoders: trunk, blocks, output head, and how blocks are checkpointed and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UsageError
from core.models.attention import AttentionContext, ContextCache, Kernel, within_documents
from core.models.block import Block, save_results_of
from core.models.cross_entropy import Losses, chunked_cross_entropy, full_cross_entropy
from core.models.layers import RMSNorm, SwiGLU
from core.models.naming import PLAIN, Naming
from core.models.rows import take
from core.trace import loss_range
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec


class DecoderBlock(Block):
    """Pre-norm attention and MLP. ``self_attn`` is called as ``self_attn(hidden, context)``."""

    def __init__(self, spec: DecoderSpec, self_attn: nn.Module) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = SwiGLU(spec.hidden_size, spec.intermediate_size)
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps)

    def forward(self, hidden: Tensor, *, context: AttentionContext) -> Tensor:
        """``[B, S, hidden]`` to the same shape."""
        return self.run(hidden, context)

    def body(self, hidden: Tensor, context: AttentionContext) -> Tensor:
        """What ``forward`` does, without checkpointing."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), context)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


Inserted = tuple[Tensor, Tensor]
"""Embeddings ``[N, hidden]`` that do not come from token ids, and int64 ``[M]``, M <= N: where the first M of them
go in the flattened batch."""


class Trunk(nn.Module):
    """Embedding, blocks and final norm; ``model.`` in the released checkpoints' names."""

    def __init__(self, spec: DecoderSpec, hp: HyperParameters, attention_type: type[nn.Module]) -> None:
        super().__init__()
        self.spec = spec
        self.attention_kind = hp.attention
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(DecoderBlock(spec, attention_type(spec)) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.contexts = ContextCache(spec, hp.attention)

    def forward(
        self,
        input_ids: Tensor,
        inserted: Inserted | None = None,
        document_ids: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Token ids ``[B, S]`` to normalised hidden states ``[B, S, hidden]``.

        ``kept``, int64 ``[M]``, are the positions in the flattened batch that are not padding; the states are then
        those of these tokens only, ``[1, M, hidden]``.
        """
        hidden = self.embed_tokens(input_ids)
        if inserted is not None:
            hidden = _insert(hidden, *inserted)
        context = self._context(hidden)
        if document_ids is not None:
            context = within_documents(context, document_ids, hidden.dtype)
        if kept is not None:
            hidden = take(hidden, kept)
            context = replace(context, rows=input_ids, positions=kept)
        for block in self.layers:
            hidden = block(hidden, context=context)
        out: Tensor = self.norm(hidden)
        return out

    def _context(self, hidden: Tensor) -> AttentionContext:
        """The context for states of this length and type."""
        device = hidden.device
        if self.attention_kind == "flex" and device.type == "cpu" and torch.is_grad_enabled():
            self._refuse_training_with_flex_on_cpu()
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else hidden.dtype
        return self.contexts.get(hidden.shape[1], device, dtype)

    def _refuse_training_with_flex_on_cpu(self) -> None:
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise UsageError(
                "attention 'flex' cannot train on a CPU: FlexAttention has no backward pass there",
                "choose attention 'sdpa' (or 'eager'), or run on an accelerator",
            )


def _insert(hidden: Tensor, embeddings: Tensor, positions: Tensor) -> Tensor:
    # Positions are told rather than searched for: a search would wait for the device. Embeddings without a
    # position still belong to the graph, so that their gradient is zero and not missing.
    used = embeddings[: len(positions)].to(hidden.dtype)
    return hidden.flatten(0, 1).index_copy(0, positions, used).view_as(hidden)


class Head(nn.Module):
    """The output projection and the loss over it, in one module.

    Whatever gathers a sharded weight around a module's forward (FSDP, ZeRO stage 3) has it whole for the loss.
    """

    def __init__(self, spec: DecoderSpec, hp: HyperParameters) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.vocab_size, spec.hidden_size))
        self.chunked = hp.loss == "chunked"
        self.compiled = False
        self.z_loss = hp.z_loss

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor | Losses:
        """Logits ``[B, S, V]`` of ``hidden`` ``[B, S, H]``; with ``labels`` ``[B, S]``, the two loss sums."""
        weight = self.output_weight()
        if labels is None:
            return F.linear(hidden, weight)
        hidden, labels = hidden.flatten(0, 1), labels.flatten()
        with loss_range():
            if self.chunked:
                return chunked_cross_entropy(hidden, weight, labels, self.z_loss, self.compiled)
            return full_cross_entropy(hidden, weight, labels, self.z_loss)

    def output_weight(self) -> Tensor:
        """The matrix ``[V, H]`` that logits are computed with."""
        return self.weight

    def compile_parts(self) -> None:
        """Compiles what lies between matrix products."""
        self.compiled = True


class Decoder(nn.Module):
    """A decoder-only language model with its loss.

    No buffers, and no random numbers of its own: it can be built under ``torch.device("meta")``, wrapped,
    materialised with ``to_empty`` and then given weights.
    """

    attention_type: type[nn.Module]
    """Makes one block's attention, called as ``attention_type(spec)``; set by the model's class."""
    head_type: type[Head] = Head

    def __init__(self, spec: DecoderSpec, hp: HyperParameters) -> None:
        super().__init__()
        self.spec = spec
        self.hp = hp
        self.model = Trunk(spec, hp, self.attention_type)
        self.lm_head = self.head_type(spec, hp)

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers: what is sharded, compiled and checkpointed as one each."""
        return [cast(Block, block) for block in self.model.layers]

    @property
    def naming(self) -> Naming:
        """What released checkpoints call the parameters."""
        return PLAIN

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Losses | Tensor:
        """The objective and the cross-entropy, fp32 scalars, summed over labels other than -100.

        Both arguments are int64 ``[B, S]``; ``labels[b, i]`` is what position i has to predict. The
        objective adds ``z_loss * lse^2``; where ``hp.z_loss`` is 0 it is the same tensor.
        Without labels: the logits ``[B, S, V]``, in the type of the computation.
        ``document_ids``, int64 ``[B, S]``: a position attends to those of its own document only.
        """
        found: Losses | Tensor = self.lm_head(self.model(input_ids, document_ids=document_ids), labels)
        return found

    def transformers_config(self) -> dict[str, object] | None:
        """The ``config.json`` that transformers loads the weights with; None for a model unknown to it."""
        return None

    def use_attention(self, kernel: Kernel, operator: Any) -> None:
        """What ``hp.attention`` calls ``vendor``; for the ``build_model`` of a vendor's plugin.

        ``operator`` is what ``kernel`` calls, an overload in ``torch.ops`` with its autograd formula: compiled
        blocks do not look into it, and selective checkpointing keeps what it computes.
        """
        self.model.contexts.kernel = kernel
        save_results_of(operator)

    @property
    def has_vendor_attention(self) -> bool:
        """Whether :meth:`use_attention` was called."""
        return self.model.contexts.kernel is not None

    def apply_activation_checkpointing(self) -> None:
        """Recomputes activations in the backward pass as ``hp.activation_checkpointing`` says.

        ``full`` keeps each block's input only. ``selective`` also keeps the results of linear layers and of
        fused attention, so that norms, rotations, gates and (eager attention's) scores are recomputed, but no
        weight is multiplied twice. Call it before the model is sharded.
        """
        for block in self.blocks:
            block.checkpointing = self.hp.activation_checkpointing

    def compile_blocks(self) -> None:
        """Compiles each block as one graph, and parts of the head, if ``hp.compile``; call it before sharding.

        Blocks are alike, so they share one compilation. Turns off the splitting of graphs along DDP's buckets
        for this process: blocks are small already, and it cannot split checkpointing or FlexAttention.
        """
        if not self.hp.compile:
            return
        torch._dynamo.config.optimize_ddp = False
        # Not a vision tower's: versions are kept by code, which all kinds of layer share, and sizes that are not
        # the same in all of them would be taken for sizes that vary. Little of the work is the tower's.
        for block in self.model.layers:
            cast(Block, block).compile_body()
        self.lm_head.compile_parts()
