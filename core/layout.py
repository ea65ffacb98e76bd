"""Which rank holds which part of a model that is split over ranks, and which part of the batch.

The order of ranks is Megatron's ``tp-dp-pp``: tensor parallel ranks are neighbours, then come the replicas, and
pipeline ranks are furthest apart. Without model parallelism the data parallel rank is the rank itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec
from schemas.plan import Placement, RankPlace
from schemas.units import Parallel

BUBBLE_SOURCE: Final = (
    "(p - 1) / (m * v + p - 1) with p pipeline ranks, m micro-batches and v stages a rank: the bubble time of "
    "Narayanan et al., arXiv 2104.04473, section 2.2, as a share of the whole step"
)


@dataclass(frozen=True)
class Rank:
    """This process among the others, as torch's launcher counts them."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> Rank:
        """Read RANK, LOCAL_RANK and WORLD_SIZE."""
        return cls(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


@dataclass(frozen=True)
class Coordinates:
    """A rank's place along each kind of parallelism, from 0."""

    tensor: int
    data: int
    pipeline: int


def coordinates(parallel: Parallel, rank: int) -> Coordinates:
    """Where ``rank`` stands."""
    rest, tensor = divmod(rank, parallel.tp)
    pipeline, data = divmod(rest, parallel.dp)
    return Coordinates(tensor=tensor, data=data, pipeline=pipeline)


def stage_layers(hp: HyperParameters, num_layers: int) -> tuple[range, ...]:
    """Layers (from 0) of each pipeline stage, from the first on; stage ``s`` is on pipeline rank ``s % PP``."""
    if hp.pipeline_layers is not None:
        counts = hp.pipeline_layers.counts
    else:
        stages = hp.pipeline_parallel * hp.virtual_pipeline_stages
        counts = (num_layers // stages,) * stages
    ends = list(accumulate(counts))
    return tuple(range(end - count, end) for count, end in zip(counts, ends, strict=True))


def bubble_fraction(hp: HyperParameters) -> float:
    """By the formula of ``BUBBLE_SOURCE``."""
    waiting = hp.pipeline_parallel - 1
    return waiting / (hp.gradient_accumulation_steps * hp.virtual_pipeline_stages + waiting)


def placement(hp: HyperParameters, model: DecoderSpec, parallel: Parallel) -> Placement | None:
    """Every rank's place; None without model parallelism."""
    if parallel.tp * parallel.pp == 1:
        return None
    return Placement(
        ranks=tuple(_ranks(hp, model, parallel)),
        bubble_fraction=bubble_fraction(hp),
        bubble_source=BUBBLE_SOURCE,
    )


def _ranks(hp: HyperParameters, model: DecoderSpec, parallel: Parallel) -> Iterator[RankPlace]:
    stages = stage_layers(hp, model.num_layers)
    for rank in range(parallel.world_size):
        place = coordinates(parallel, rank)
        own = range(place.pipeline, len(stages), parallel.pp)
        yield RankPlace(
            rank=rank,
            tensor=place.tensor,
            pipeline=place.pipeline,
            data=place.data,
            layers=tuple((stages[stage][0], stages[stage][-1]) for stage in own),
            parameters=sum(_stage_parameters(model, stages, stage, parallel.tp) for stage in own),
        )


def count_parameters(model: DecoderSpec) -> int:
    """All of a decoder's, as if it were built."""
    return _stage_parameters(model, (range(model.num_layers),), 0, 1)


def count_embeddings(model: DecoderSpec) -> int:
    """Of these, those of the input embedding and of the output head."""
    return 2 * model.vocab_size * model.hidden_size


def _stage_parameters(model: DecoderSpec, stages: tuple[range, ...], stage: int, tp: int) -> int:
    """Parameters of one stage on one tensor parallel rank: matrices are split, norms are not."""
    hidden, kv_size = model.hidden_size, model.num_kv_heads * model.head_size
    attention = hidden * (2 * hidden + 2 * kv_size)
    matrices = attention + 3 * hidden * model.intermediate_size
    embedding = model.vocab_size * hidden
    count = len(stages[stage]) * (matrices // tp + 2 * hidden)
    if stage == 0:
        count += embedding // tp
    if stage == len(stages) - 1:
        count += embedding // tp + hidden
    return count
