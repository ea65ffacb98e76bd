"""The model that contenders train: transformers' Llama; Baichuan2, which is in no library, is our own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.work import Work

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class WithLoss(nn.Module):
    """A model and its mean cross-entropy in one forward, so that what shards weights has them whole for both.

    ``fused_loss``: Liger's fused linear cross-entropy, where its Triton kernels run; on a CPU torch's own.
    """

    def __init__(
        self, work: Work, device: torch.device, attention: str, *, fused_loss: bool, compiled: bool = False
    ) -> None:
        super().__init__()
        self.ours = work.model.position == "alibi"
        with device:
            inner = _baichuan2(work, attention, compiled) if self.ours else _llama(work, attention)
        self.inner: Any = inner
        initialise(self.inner, work)
        self.fused: nn.Module | None = None
        if fused_loss and device.type != "cpu":
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

            self.fused = LigerFusedLinearCrossEntropyLoss()

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder layers."""
        layers: nn.ModuleList = self.inner.model.layers
        return layers

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Token ids and labels, int64 ``[B, S]``, to a scalar."""
        hidden = self._hidden(input_ids).flatten(0, 1)
        if self.fused is not None:
            head = self.inner.lm_head
            loss: Tensor = self.fused(head.output_weight() if self.ours else head.weight, hidden, labels.flatten())
            return loss
        return F.cross_entropy(self.inner.lm_head(hidden).float(), labels.flatten())

    def _hidden(self, input_ids: Tensor) -> Tensor:
        if self.ours:
            return self.inner.model(input_ids)
        return self.inner.model(input_ids=input_ids, use_cache=False).last_hidden_state

    def cast(self, dtype: torch.dtype) -> WithLoss:
        """Parameters to ``dtype``; the angles of rotary positions stay as they are."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        return self

    def recompute(self) -> None:
        """Full activation checkpointing, by layer."""
        if self.ours:
            for block in self.blocks:
                block.checkpointing = "full"
        else:
            self.inner.gradient_checkpointing_enable({"use_reentrant": False})

    def compile_blocks(self) -> None:
        """Compiles each layer, within the hooks that gather it where it is sharded.

        Not the model as one: transformers, when it is traced, makes a causal mask, with which SDPA has no fast
        kernel (Llama2-7B on one H200: 11,020 token/p/s).
        """
        if self.ours:
            self.inner.compile_blocks()
        else:
            for block in self.blocks:
                block.forward = torch.compile(block.forward)


def _llama(work: Work, attention: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = work.model
    config = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        max_position_embeddings=model.max_positions,
        rms_norm_eps=model.norm_eps,
        rope_theta=model.rope_theta,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).train()


def _baichuan2(work: Work, attention: str, compiled: bool) -> nn.Module:
    from core.models.baichuan2 import Baichuan2
    from schemas.hyperparameters import HyperParameters

    hp = HyperParameters(
        precision=work.precision,
        local_batch_size=1,
        sequence_length=work.sequence_length,
        learning_rate=work.learning_rate,
        attention=attention,
        compile=compiled,
        loss="full",
    )
    return Baichuan2(work.model, hp)


@torch.no_grad()
def initialise(model: nn.Module, work: Work) -> None:
    """Matrices at random, norms at one."""
    torch.manual_seed(work.seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=work.model.initializer_range)
        else:
            parameter.fill_(1.0)
