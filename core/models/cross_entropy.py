"""Cross-entropy with z-loss, summed over labels, over all logits at once or in chunks of tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.data.source import IGNORED_LABEL
from core.models.products import add_product

CHUNK_TOKENS = 4096
"""Tokens per chunk: each further one reads and writes the weight's gradient in fp32, while logits (in 16 bits
0.26 GB at 32,000 words) stay small."""

Losses = tuple[Tensor, Tensor]
"""The objective (cross-entropy and z-loss) and the cross-entropy alone: fp32 scalars, sums over labels."""


def full_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float) -> Losses:
    """Sums over labels other than -100 of ``lse - logit[label]`` and of ``z_loss * lse^2`` on top of it.

    ``hidden`` is ``[N, H]``, ``weight`` ``[V, H]``, ``labels`` ``[N]``; ``lse`` is the logarithm of the
    softmax's denominator (the z-loss is that of PaLM, arXiv:2204.02311, section 5). With ``z_loss`` 0 both
    results are the same tensor, otherwise only the objective carries a gradient.
    """
    logits = F.linear(hidden, weight).float()
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    if not z_loss:
        return cross_entropy, cross_entropy
    counted = logits.logsumexp(dim=-1).masked_fill(labels == IGNORED_LABEL, 0.0)
    return cross_entropy + z_loss * counted.square().sum(), cross_entropy.detach()


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float, compiled: bool = False
) -> Losses:
    """The sums of :func:`full_cross_entropy`; logits exist for ``CHUNK_TOKENS`` tokens at a time only.

    The gradients are computed along with the loss, so that no logits are kept or computed twice (as in
    Liger-Kernel's fused linear cross-entropy, arXiv:2410.10989). Products run in autocast's type, if it is on.
    ``compiled`` fuses what lies between the products, which then needs no fp32 logits at all.
    """
    device = hidden.device.type
    training = torch.is_grad_enabled()
    terms = _Terms(
        z_loss=z_loss,
        product_type=torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype,
        hidden_gradient=training and hidden.requires_grad,
        weight_gradient=training and weight.requires_grad,
        compiled=compiled,
    )
    objective, cross_entropy = _ChunkedCrossEntropy.apply(hidden, weight, labels, terms)  # type: ignore[no-untyped-call]
    return objective, cross_entropy if z_loss else objective


class _Terms(NamedTuple):
    """What is computed, in which type, and which gradients are wanted."""

    z_loss: float
    product_type: torch.dtype
    hidden_gradient: bool
    weight_gradient: bool
    compiled: bool


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in the forward; the backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, terms: _Terms) -> Losses:
        with torch.autocast(hidden.device.type, enabled=False):
            operands = hidden.to(terms.product_type), weight.to(terms.product_type)
            losses, hidden_gradient, weight_gradient = _sum_chunks(*operands, labels, terms)
        if hidden_gradient is not None:
            hidden_gradient = hidden_gradient.to(hidden.dtype)
        if weight_gradient is not None and weight.dtype != torch.float16:
            # A sum over all tokens can leave fp16's range before it is divided by their number.
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.weight_type = weight.dtype
        ctx.scale = _compiled(_scale) if terms.compiled else _scale
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(losses[1])
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, objective_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        # In place, for the weight's is the largest tensor alive; a second backward then fails on its version.
        if hidden_gradient is not None:
            hidden_gradient.mul_(objective_gradient)
        if weight_gradient is not None:
            ctx.scale(weight_gradient, objective_gradient)
            weight_gradient = weight_gradient.to(ctx.weight_type)
        return hidden_gradient, weight_gradient, None, None


def _sum_chunks(
    hidden: Tensor, weight: Tensor, labels: Tensor, terms: _Terms
) -> tuple[Losses, Tensor | None, Tensor | None]:
    """The losses over all chunks, and the objective's gradients that are wanted.

    With several chunks, the weight's gradient is accumulated in fp32.
    """
    totals = torch.zeros(2, device=hidden.device, dtype=torch.float32)
    hidden_gradient = torch.empty_like(hidden) if terms.hidden_gradient else None
    weight_gradient: Tensor | None = None
    step = _compiled(_softmax_step) if terms.compiled else _softmax_step
    for start in range(0, hidden.shape[0], CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        logits = hidden[chunk] @ weight.t()
        totals += step(logits, labels[chunk], terms)
        if hidden_gradient is not None:
            torch.matmul(logits, weight, out=hidden_gradient[chunk])
        if terms.weight_gradient:
            operands = logits.t(), hidden[chunk]
            # Of one chunk, too, a sum over its tokens can leave fp16's range.
            whole = hidden.shape[0] <= CHUNK_TOKENS and logits.dtype != torch.float16
            weight_gradient = operands[0] @ operands[1] if whole else add_product(weight_gradient, *operands)
    return (totals[0].clone(), totals[1].clone()), hidden_gradient, weight_gradient


def _softmax_step(logits: Tensor, labels: Tensor, terms: _Terms) -> Tensor:
    """``[objective, cross-entropy]`` of one chunk; ``logits`` are overwritten by the objective's gradient."""
    counted = labels != IGNORED_LABEL
    target = labels.masked_fill(~counted, 0).unsqueeze(1)
    log_probability = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    target_log_probability = log_probability.gather(1, target)
    # The label's logit is exact in fp32, so this is the denominator's logarithm without another pass.
    lse = logits.gather(1, target).float() - target_log_probability
    mask = counted.unsqueeze(1).float()
    cross_entropy = -(target_log_probability * mask).sum()
    objective = cross_entropy + terms.z_loss * (lse * mask).square().sum()
    if terms.hidden_gradient or terms.weight_gradient:
        scale = mask * (1.0 + 2.0 * terms.z_loss * lse)
        # Not by scatter, which Inductor cannot fuse with what comes before it: two passes over all logits.
        is_target = torch.arange(logits.shape[1], device=logits.device) == target
        logits.copy_(log_probability.exp_() * scale - is_target * mask)
    return torch.stack((objective, cross_entropy))


def _scale(values: Tensor, factor: Tensor) -> None:
    values.mul_(factor)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True)
