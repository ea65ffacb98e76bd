"""The modules of a layer that are not Megatron's own. States are ``[S, B, hidden]`` there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.models.attention import ContextCache, attend
from core.models.block import selective_contexts
from schemas.hyperparameters import Checkpointing


class Norm(nn.Module):
    """RMSNorm whose weight's gradients are summed over the ranks of a sequence that is split."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, *, compiled: bool) -> None:
        super().__init__()
        device = torch.cuda.current_device()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=config.params_dtype, device=device))
        # Megatron's own torch norm lacks this mark, and refuses a split sequence.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps
        self._norm: Callable[..., Tensor] = torch.compile(F.rms_norm) if compiled else F.rms_norm

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalises the last dimension."""
        return self._norm(hidden, self.weight.shape, self.weight, self.eps)


class CoreAttention(nn.Module):
    """Core's causal attention, of the heads of this tensor parallel rank."""

    def __init__(self, *, contexts: ContextCache, compiled: bool, **_: Any) -> None:
        """``contexts`` serve all layers of the stage; Megatron's own arguments are not needed."""
        super().__init__()
        self._contexts = contexts
        self._attend: Callable[..., Tensor] = torch.compile(attend, fullgraph=True) if compiled else attend

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """Query ``[S, B, heads, D]``, key and value ``[S, B, kv_heads, D]`` to ``[S, B, heads * D]``."""
        context = self._contexts.get(query.shape[0], query.device, query.dtype)
        batch_first = (states.transpose(0, 1) for states in (query, key, value))
        return self._attend(*batch_first, context).transpose(0, 1)


class CheckpointedLayer(TransformerLayer):  # type: ignore[misc]
    """A layer that recomputes its activations as core's decoders do, not as Megatron's ``selective``.

    That one computes attention again, which fused attention does anyway, and keeps all the rest.
    """

    def __init__(self, *args: Any, checkpointing: Checkpointing, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checkpointing = checkpointing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As ``TransformerLayer.forward``."""
        if self._checkpointing == "none" or not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        # No random numbers are drawn, so none need be replayed.
        recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        if self._checkpointing == "selective":
            recompute = partial(recompute, context_fn=selective_contexts)
        return recompute(super().forward, *args, **kwargs)


class NormalisedOutput(ColumnParallelLinear):  # type: ignore[misc]
    """Baichuan2's NormHead: words are split over the ranks, so each row of the weight is whole on one of them."""

    def forward(self, input_: Tensor, weight: None = None, runtime_gather_output: bool | None = None) -> Any:
        """As ``ColumnParallelLinear.forward``, with the rows of the weight scaled to length one."""
        assert weight is None  # it is not shared with the embedding
        return super().forward(input_, F.normalize(self.weight), runtime_gather_output)
