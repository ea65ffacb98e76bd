"""Causal attention with ALiBi by cuDNN, through its frontend: torch's SDPA asks cuDNN for no ALiBi.

cuDNN adds ``slope * (key - query)`` to the scores within its kernel, with the slopes of the paper, which it works
out from the number of heads itself, as ``core.models.attention.alibi_slopes`` does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

GRAPHS = 16
"""Of the shapes that were met last, cuDNN's plans are kept."""


class Layout(NamedTuple):
    """All that a plan of cuDNN depends on of one tensor."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class Planned(NamedTuple):
    """A graph that cuDNN can execute, with what it wants to be given, in this order."""

    graph: Any
    tensors: Sequence[Any]
    workspace_bytes: int


def attend(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None) -> Tensor:
    """A ``core.models.attention.Kernel``; the slopes are cuDNN's own."""
    out: Tensor = forward(query, key, value)[0]
    return out


@torch.library.custom_op("accelmark::cudnn_alibi", mutates_args=(), device_types="cuda")
def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention's result, and of each row of scores the logarithm of the sum, fp32 ``[B, heads, S, 1]``."""
    out, statistics = _results(query)
    tensors = (query, key, value, out, statistics)
    _execute(_plan_forward(query.device.index, tuple(map(_layout, tensors))), tensors)
    return out, statistics


@torch.library.custom_op("accelmark::cudnn_alibi_backward", mutates_args=(), device_types="cuda")
def backward(given: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value; ``given`` are these, both results, and the first one's gradient."""
    gradients = _gradients(given)
    tensors = (*given, *gradients)
    _execute(_plan_backward(given[0].device.index, tuple(map(_layout, tensors))), tensors)
    return gradients


def _heads_inside(like: Tensor) -> Tensor:
    """An empty ``[B, heads, S, D]`` that lies in memory as ``[B, S, heads, D]``, as products take and give it."""
    batch, heads, length, size = like.shape
    return like.new_empty(batch, length, heads, size).transpose(1, 2)


def _results(query: Tensor) -> tuple[Tensor, Tensor]:
    return _heads_inside(query), query.new_empty(*query.shape[:3], 1, dtype=torch.float32)


def _gradients(given: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = given[:3]
    return _heads_inside(query), _heads_inside(key), _heads_inside(value)


@forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return _results(query)


@backward.register_fake
def _(given: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(given)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)  # nothing comes for the statistics


def _differentiate(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
    out = ctx.saved_tensors[3]
    if gradient.stride() != out.stride():  # one that was broadcast, as a sum's is, has no rows to read
        gradient = torch.empty_like(out).copy_(gradient)
    found: tuple[Tensor, Tensor, Tensor] = backward([*ctx.saved_tensors, gradient])
    return found


forward.register_autograd(_differentiate, setup_context=_save)


def _layout(tensor: Tensor) -> Layout:
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype)


@functools.cache
def _handle(device: int) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


@functools.lru_cache(GRAPHS)
def _plan_forward(device: int, layouts: Sequence[Layout]) -> Planned:
    graph = _graph(device, layouts[0].dtype)
    query, key, value = (_tensor(graph, layout) for layout in layouts[:3])
    found = graph.sdpa(q=query, k=key, v=value, generate_stats=True, **_causal_alibi(layouts[0]))
    return _built(graph, layouts, [query, key, value], found)


@functools.lru_cache(GRAPHS)
def _plan_backward(device: int, layouts: Sequence[Layout]) -> Planned:
    graph = _graph(device, layouts[0].dtype)
    given = [_tensor(graph, layout) for layout in layouts[:6]]
    names = ("q", "k", "v", "o", "stats", "dO")
    found = graph.sdpa_backward(**dict(zip(names, given, strict=True)), **_causal_alibi(layouts[0]))
    return _built(graph, layouts, given, found)


def _graph(device: int, dtype: torch.dtype) -> Any:
    import cudnn

    inside = _kind(torch.float32)
    return cudnn.pygraph(
        handle=_handle(device), io_data_type=_kind(dtype), intermediate_data_type=inside, compute_data_type=inside
    )


def _kind(dtype: torch.dtype) -> Any:
    import cudnn

    names = {torch.bfloat16: "BFLOAT16", torch.float16: "HALF", torch.float32: "FLOAT"}
    return getattr(cudnn.data_type, names[dtype])


def _causal_alibi(query: Layout) -> dict[str, Any]:
    return {"attn_scale": 1 / math.sqrt(query.sizes[-1]), "use_causal_mask": True, "use_alibi_mask": True}


def _tensor(graph: Any, layout: Layout) -> Any:
    return graph.tensor(dim=list(layout.sizes), stride=list(layout.strides), data_type=_kind(layout.dtype))


def _built(graph: Any, layouts: Sequence[Layout], given: Sequence[Any], found: Sequence[Any]) -> Planned:
    """The graph, planned by cuDNN's heuristics; results lie as ``layouts`` say."""
    import cudnn

    for tensor, layout in zip(found, layouts[len(given) :], strict=True):
        tensor.set_output(True).set_dim(list(layout.sizes)).set_stride(list(layout.strides))
        tensor.set_data_type(_kind(layout.dtype))
    graph.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    return Planned(graph, (*given, *found), graph.get_workspace_size())


def _execute(planned: Planned, tensors: Sequence[Tensor]) -> None:
    import cudnn

    device = tensors[0].device
    workspace = torch.empty(planned.workspace_bytes, dtype=torch.uint8, device=device)
    handle = _handle(device.index)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
    planned.graph.execute(dict(zip(planned.tensors, tensors, strict=True)), workspace, handle=handle)
