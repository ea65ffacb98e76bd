"""The settings that make a run fast and change nothing about what it computes, as a function of plan and chip.

A run of a config with ``tuned=True`` takes them; its own ``fix_hp`` and ``--set`` go before them, and the vendor's
``tune`` hook may replace any, whereupon the rest is chosen anew; what it moves shards by is dropped where replicas
are faster. Kept are tokens per step, precision and optimizer state: only like is compared with like.

Of the splits of a step's sequences into LBS × GAS and the ZeRO stages that fit into memory, with every kind of
checkpointing, the one is taken that spends the least time on sending, copying and computing again; of equals, the
one with the larger LBS. At stage 3 as many layers stay gathered as there is room for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

from core import metrics
from core.engines.catalog import engine_spec
from core.errors import UsageError
from core.layout import count_embeddings, count_parameters
from core.memory_estimate import (
    GIB,
    computed_bytes,
    is_sharded,
    is_stage2_among_peers,
    keeps_main_weights,
    number_bytes,
    peak_allocated_gib,
    weight_bytes,
)
from schemas.chip import ChipSpec
from schemas.hyperparameters import HyperParameters, OverrideValue
from schemas.model import DecoderSpec
from schemas.record import Parameters

RUNTIME_GIB, COLLECTIVES_GIB = 2.0, 5.0
"""What a device's runtime takes for itself, and what collectives over several devices do, as H200 records show."""
FILLED = 0.96
"""Of the rest, what is planned for: estimates are that far off, and no allocator fills all of it."""
SPARE_GIB = 8.0
"""Left alone by layers that stay gathered: they save little, and an allocator without room costs more."""

SENT_GB_PER_S = 300.0
"""What a rank gets through of the weights and gradients that it shares: on two H200 with NVLink, stage 3 of
Baichuan2-13B took 1.1 s a step for 334 GB that it did not take without. Of other links nothing is known here."""
ATTAINED = 0.7
"""Of a chip's peak, what large matrix products reach, as H200 traces show them."""
MOVED_GB_PER_S = 4000.0
"""Of bytes read and written by kernels that do little else, as H200 traces show them. Like the rate of sending, no
other chip's is known here: it is the proportion of the two that decides."""

UNKNOWN_S = 1e6
"""In the place of a time that nothing tells: longer than a step."""

Settings = dict[str, OverrideValue]


def choose(
    hp: HyperParameters,
    model: DecoderSpec,
    chip: ChipSpec,
    world_size: int,
    given: Mapping[str, OverrideValue],
) -> Settings:
    """Settings for engine ``torch`` on ``world_size`` ranks; what is ``given`` is left out, and reckoned with."""
    chosen: Settings = {"attention": "sdpa", "loss": "chunked", "compile": not chip.reference}
    chosen |= _fitting(hp, model, chip, world_size, given)
    return {key: value for key, value in chosen.items() if key not in given}


def require(engine: str, text_alone: bool) -> None:
    """UsageError for a run that this module knows too little about."""
    if engine == "torch" and text_alone:
        return
    what = f"engine {engine}" if text_alone else "images or adapters"
    raise UsageError(
        f"nothing chooses the settings of a tuned run with {what}",
        "give them in the run's fix_hp in the place of tuned=True, or use engine torch on a case of text",
    )


def _fitting(
    hp: HyperParameters,
    model: DecoderSpec,
    chip: ChipSpec,
    world_size: int,
    given: Mapping[str, OverrideValue],
) -> Settings:
    """Checkpointing, ZeRO stage, LBS and GAS."""
    room_gib = _room_gib(chip, world_size)
    fitting = []
    for changes in _splits(hp, world_size, given):
        candidate = hp.model_copy(update=changes)
        contradicts = any(given.get(key, value) != value for key, value in changes.items())
        if contradicts or peak_allocated_gib(candidate, model, world_size) > room_gib:
            continue
        if candidate.zero_stage == 3 and "gathered_layers" not in given:
            changes["gathered_layers"] = _gathered_layers(candidate, model, world_size, room_gib - SPARE_GIB)
            candidate = candidate.model_copy(update=changes)
        cost_s = (
            _sending_s(candidate, model, world_size)
            + _copying_s(candidate, model, world_size)
            + _recomputing_s(candidate, model, chip)
        )
        fitting.append((cost_s, -candidate.local_batch_size, changes))
    if fitting:
        return min(fitting, key=lambda found: found[:2])[2]
    # Let it be tried: an estimate is no reason to refuse a run, and running out of memory leaves a record.
    stage = given.get("zero_stage", 3 if world_size > 1 else 0)
    return {"activation_checkpointing": "full", "zero_stage": stage, **_unused(stage)}


def _room_gib(chip: ChipSpec, world_size: int) -> float:
    """Memory that parameters and activations may take; what vendors call GB is nearer to GiB."""
    if chip.memory_gb is None:
        return math.inf
    return FILLED * (chip.memory_gb - RUNTIME_GIB - (COLLECTIVES_GIB if world_size > 1 else 0.0))


def _splits(hp: HyperParameters, world_size: int, given: Mapping[str, OverrideValue]) -> Iterator[Settings]:
    """Every way to split a rank's sequences of one step over micro-batches, with every ZeRO stage that helps."""
    sequences = hp.local_batch_size * hp.gradient_accumulation_steps
    alone = (hp.zero_stage if "zero_stage" in given else 0,)
    stages = engine_spec("torch").zero_stages if world_size > 1 else alone
    kinds = ("none", "selective", "full")
    for checkpointing, stage, local in product(kinds, stages, range(1, sequences + 1)):
        if sequences % local == 0:
            yield {
                "activation_checkpointing": checkpointing,
                "zero_stage": stage,
                "local_batch_size": local,
                "gradient_accumulation_steps": sequences // local,
                **_unused(stage),
            }


def _unused(stage: OverrideValue) -> Settings:
    """Settings without a use at a stage, as a plan wants them there: replicas have no shards for peers to copy."""
    no_layers: Settings = {} if stage == 3 else {"gathered_layers": 0}
    return {**no_layers, "collectives": "library"} if stage == 0 else no_layers


def _gathered_layers(hp: HyperParameters, model: DecoderSpec, world_size: int, room_gib: float) -> int:
    """The most that fit beside the peak without them, of all but one: with all of them it would be stage 2.

    They are given back while gradients come, but an allocator holds on to what it has given.
    """
    without = peak_allocated_gib(hp.model_copy(update={"gathered_layers": 0}), model, world_size)
    parameters = (count_parameters(model) - count_embeddings(model)) / model.num_layers
    fitting = (room_gib - without) * GIB / (parameters * weight_bytes(hp))
    return int(min(max(fitting, 0), model.num_layers - 1))


def _recomputing_s(hp: HyperParameters, model: DecoderSpec, chip: ChipSpec) -> float:
    """What checkpointing adds to a step; of products, on a chip of unknown speed, more than any sending does.

    Under fp8 that is too little: attention, and rounding to 8 bits, take what they do in bf16.
    """
    if hp.activation_checkpointing == "none":
        return 0.0
    tokens = hp.local_batch_size * hp.gradient_accumulation_steps * hp.sequence_length
    moving_s = tokens * _moved_again_bytes(hp, model) / (MOVED_GB_PER_S * 1e9)
    parameters = count_parameters(model)
    counted = Parameters(total=parameters, trainable=parameters, embedding=count_embeddings(model))
    work = metrics.Work(model, counted, hp.sequence_length, hp.activation_checkpointing, hp.attention)
    flops = tokens * metrics.recomputed_per_token(work)
    if flops == 0:
        return moving_s
    peak_tflops = chip.peak(metrics.compute_precision(hp)).tflops
    return UNKNOWN_S if peak_tflops is None else moving_s + flops / (ATTAINED * peak_tflops * 1e12)


def _moved_again_bytes(hp: HyperParameters, model: DecoderSpec) -> float:
    """Of one token, by the fused kernels that run again: two norms (the second of a sum), rotations, and the MLP's
    product, which is written where its gradient reads gate and up anyway."""
    numbers = 5 * model.hidden_size + model.intermediate_size
    if model.position == "rope":
        numbers += 2 * (model.num_heads + model.num_kv_heads) * model.head_size
    return model.num_layers * numbers * computed_bytes(hp)


def _copying_s(hp: HyperParameters, model: DecoderSpec, world_size: int) -> float:
    """What a step does with weights and gradients that its products do not need.

    Gradients of each further micro-batch are read, added to a sum, and written, as far as they are this rank's.
    The update reads weight, gradient and two moments, and writes all but the gradient.
    FSDP2 also copies, in line with the products, weights out of the buffer in which they are gathered, and
    gradients into the one from which they are reduced, those of replicas once. Stage 2 among peers does without,
    of weights in 16 bits.
    """
    micro_batches = hp.gradient_accumulation_steps
    moved = number_bytes(hp, model, world_size) * (7 + 3 * (micro_batches - 1))
    if is_sharded(hp, world_size) and not is_stage2_among_peers(hp):
        times = _gathered_times(hp, model) + (micro_batches if hp.zero_stage > 0 else 1)
        moved += 2 * weight_bytes(hp) * count_parameters(model) * times
    return moved / (MOVED_GB_PER_S * 1e9)


def _sending_s(hp: HyperParameters, model: DecoderSpec, world_size: int) -> float:
    """What ranks take in one step to send weights and gradients.

    Gathering the weights for each forward and each backward (stage 3) or once (stage 2, and layers that stay); and
    reducing gradients with every micro-batch, in fp32 or, where peers copy them, as they are. Replicas reduce
    theirs once, in their own type, to all.
    """
    if world_size == 1:
        return 0.0
    share = count_parameters(model) * (world_size - 1) / world_size / (SENT_GB_PER_S * 1e9)
    width, micro_batches = weight_bytes(hp), hp.gradient_accumulation_steps
    if hp.zero_stage == 0:
        return share * 2.0 * (4 if keeps_main_weights(hp) else width)
    reduced = width if hp.collectives == "peer_copies" else 4
    return share * (_gathered_times(hp, model) * width + reduced * micro_batches)


def _gathered_times(hp: HyperParameters, model: DecoderSpec) -> float:
    """How often in a step each weight is, in the mean."""
    stay = hp.gathered_layers / model.num_layers if hp.zero_stage == 3 else 1.0
    return stay + (1 - stay) * 2 * hp.gradient_accumulation_steps
