"""What is sharded, compiled and checkpointed as one: a layer of a tower of layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from schemas.hyperparameters import Checkpointing


class Block(nn.Module):
    """A layer; its ``forward`` calls ``run``, which calls ``body``."""

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing: Checkpointing = "none"
        self.draws = False
        """Whether it draws random numbers (dropout), which must be replayed where it is computed again."""
        self._compiled: Callable[..., Tensor] | None = None

    body: Callable[..., Tensor]
    """What the layer computes; a method of the layer's class."""

    def run(self, *args: Any) -> Tensor:
        """``body``, compiled and checkpointed as was asked for."""
        # Prompts of an evaluation differ in length, and each length would be compiled anew.
        compiled = self._compiled if self.training else None
        return (compiled or self._maybe_checkpointed)(*args)

    def compile_body(self) -> None:
        """Compiles what ``forward`` does, but not the module's call.

        Hooks of FSDP or DeepSpeed stay outside of the graph and parameter names stay as they are.
        """
        self._compiled = torch.compile(self._maybe_checkpointed, fullgraph=True)

    def _maybe_checkpointed(self, *args: Any) -> Tensor:
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self.body(*args)
        recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=self.draws)
        if self.checkpointing == "selective":
            recompute = partial(recompute, context_fn=selective_contexts)
        out: Tensor = recompute(self.body, *args)
        return out


def _saved_operators() -> set[Any]:
    aten = torch.ops.aten
    return {
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_fused_attention_overrideable.default,
        torch.ops.higher_order.flex_attention,
    }


_SAVED_OPERATORS = _saved_operators()


def save_results_of(operator: Any) -> None:
    """Let selective checkpointing keep what ``operator`` computes, an overload in ``torch.ops``."""
    _SAVED_OPERATORS.add(operator)


def _selective_policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    saved = operator in _SAVED_OPERATORS
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


selective_contexts = partial(create_selective_checkpoint_contexts, _selective_policy)
"""``context_fn`` of a checkpoint that keeps the results of matrix products and of fused attention."""
