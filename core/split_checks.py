"""Checks of how a model is split over ranks: tensor, sequence and pipeline parallel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.proposal import Check, Proposal, Refusal
from schemas.hyperparameters import OverrideValue
from schemas.units import PipelineLayers


def _divides_world(p: Proposal) -> Refusal | None:
    tp, pp, world = p.hp.tensor_parallel, p.hp.pipeline_parallel, p.topology.world_size
    if world % (tp * pp) == 0:
        return None
    return Refusal(
        f"TP{tp} × PP{pp} = {tp * pp} does not divide the {world} chips of {p.topology}", _nearest_split(p)
    )


def _model_parallel(p: Proposal) -> Refusal | None:
    if p.spec.model_parallel or p.hp.tensor_parallel * p.hp.pipeline_parallel == 1:
        return None
    return Refusal(
        f"engine {p.engine} splits no model over ranks (TP{p.hp.tensor_parallel}PP{p.hp.pipeline_parallel})",
        _nearest_split(p),
    )


def _heads_divide(p: Proposal) -> Refusal | None:
    tp, heads, kv_heads = p.hp.tensor_parallel, p.model.num_heads, p.model.num_kv_heads
    if heads % tp == 0 and kv_heads % tp == 0:
        return None
    return Refusal(
        f"TP{tp} does not divide {heads} attention heads and {kv_heads} key/value heads", _nearest_split(p)
    )


def _widths_divide(p: Proposal) -> Refusal | None:
    tp, ffn, words = p.hp.tensor_parallel, p.model.intermediate_size, p.model.vocab_size
    if not p.spec.model_parallel or (ffn % tp == 0 and words % tp == 0):
        return None
    return Refusal(
        f"TP{tp} does not divide the intermediate size {ffn} and the vocabulary of {words}", _nearest_split(p)
    )


def _virtual_stages(p: Proposal) -> Refusal | None:
    if p.hp.virtual_pipeline_stages == 1 or p.hp.pipeline_parallel > 1:
        return None
    return Refusal(
        f"{p.hp.virtual_pipeline_stages} virtual pipeline stages need a pipeline (PP is 1)",
        {"virtual_pipeline_stages": 1},
    )


def _layers_divide(p: Proposal) -> Refusal | None:
    """Without a list, every stage holds as many layers."""
    pp, virtual, layers = p.hp.pipeline_parallel, p.hp.virtual_pipeline_stages, p.model.num_layers
    if p.hp.pipeline_layers is not None or layers % (pp * virtual) == 0:
        return None
    if layers % pp:
        return Refusal(f"PP{pp} does not divide {layers} layers", _nearest_split(p))
    fitting = max(n for n in range(1, virtual) if layers // pp % n == 0)
    return Refusal(
        f"PP{pp} × {virtual} virtual stages do not divide {layers} layers", {"virtual_pipeline_stages": fitting}
    )


def _layer_list(p: Proposal) -> Refusal | None:
    """A list names every stage's layers, and all of them."""
    split, layers = p.hp.pipeline_layers, p.model.num_layers
    stages = p.hp.pipeline_parallel * p.hp.virtual_pipeline_stages
    if split is None or (stages > 1 and len(split.counts) == stages and sum(split.counts) == layers):
        return None
    if stages == 1:
        return Refusal(f"pipeline_layers {split} needs a pipeline (PP is 1)", {"pipeline_layers": None})
    even = None if layers < stages else PipelineLayers(counts=_even(layers, stages))
    return Refusal(
        f"pipeline_layers {split} has {len(split.counts)} stages and {sum(split.counts)} layers, the model "
        f"{stages} stages and {layers} layers",
        {"pipeline_layers": even},
    )


def _even(layers: int, stages: int) -> tuple[int, ...]:
    """As even as can be; the last stage also has the output head, so earlier ones take what is left over."""
    few, more = divmod(layers, stages)
    return tuple(few + (stage < more) for stage in range(stages))


def _interleaving(p: Proposal) -> Refusal | None:
    gas, pp = p.hp.gradient_accumulation_steps, p.hp.pipeline_parallel
    if p.hp.virtual_pipeline_stages == 1 or gas % pp == 0:
        return None
    return Refusal(
        f"interleaved stages take micro-batches in groups of PP{pp}, which does not divide GAS {gas}",
        {"gradient_accumulation_steps": math.ceil(gas / pp) * pp},
    )


def _sequence_parallel(p: Proposal) -> Refusal | None:
    tp, length = p.hp.tensor_parallel, p.hp.sequence_length
    if not p.hp.sequence_parallel or (tp > 1 and length % tp == 0):
        return None
    why = "has no tensor parallel ranks to split over (TP is 1)" if tp == 1 else f"TP{tp} does not divide {length}"
    return Refusal(f"sequence_parallel: {why}", {"sequence_parallel": False})


def _selective_checkpointing(p: Proposal) -> Refusal | None:
    """Kept results of matrix products must stay as they are; without SP they are summed over ranks in place."""
    hp = p.hp
    if hp.tensor_parallel == 1 or hp.sequence_parallel or hp.activation_checkpointing != "selective":
        return None
    splits = hp.sequence_length % hp.tensor_parallel == 0
    return Refusal(
        f"selective checkpointing under TP{hp.tensor_parallel} gives wrong gradients without sequence_parallel",
        {"sequence_parallel": True} if splits else {"activation_checkpointing": "full"},
    )


SPLIT_CHECKS: Sequence[Check] = (
    _divides_world,
    _heads_divide,
    _widths_divide,
    _model_parallel,
    _virtual_stages,
    _layers_divide,
    _layer_list,
    _interleaving,
    _sequence_parallel,
    _selective_checkpointing,
)


def _nearest_split(p: Proposal) -> dict[str, OverrideValue | PipelineLayers]:
    """TP and PP closest to the wanted ones that world size, model and engine allow, all at once.

    Judged one by one, each check would undo what another one asked for.
    """
    model, world = p.model, p.topology.world_size
    sizes = _divisors(world) if p.spec.model_parallel else [1]
    split_by_tp = (model.num_heads, model.num_kv_heads, model.intermediate_size, model.vocab_size)
    possible = [
        (tp, pp)
        for tp in sizes
        for pp in sizes
        if not (world % (tp * pp) or any(width % tp for width in split_by_tp) or not _splits_layers(p, pp))
    ]
    tp, pp = min(
        possible,
        key=lambda split: abs(split[0] - p.hp.tensor_parallel) + abs(split[1] - p.hp.pipeline_parallel),
    )
    return {"tensor_parallel": tp, "pipeline_parallel": pp}


def _splits_layers(p: Proposal, pp: int) -> bool:
    """Whether PP can be had by some number of virtual stages, or by some list where one is given."""
    return p.model.num_layers % pp == 0 or (p.hp.pipeline_layers is not None and p.model.num_layers >= pp)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
