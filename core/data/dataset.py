"""Format ``tokens``: the prepared folder that a run names, or the generated corpus."""

from __future__ import annotations

from pathlib import Path

from core.data.embedded import cache_dir, embedded_data
from core.data.reader import TokenReader
from core.errors import UsageError
from schemas.case import DataSpec
from schemas.hyperparameters import HyperParameters
from schemas.plan import Plan

_CORPUS_SEED = 0
"""Every run without a data set trains on this corpus; the run's own seed only orders it."""


def make(plan: Plan) -> None:
    """As ``core.data.catalog.Format``."""
    data_folder(plan.data, plan.hyper_parameters.sequence_length, plan.model.vocab_size)


def open_source(plan: Plan, *, replica: int, verify: bool) -> TokenReader:
    """As ``core.data.catalog.Format``."""
    hp, dp = plan.hyper_parameters, plan.parallel.dp
    return open_data(plan.data, hp, plan.model.vocab_size, rank=replica, world_size=dp, verify=verify)


def data_folder(data: DataSpec, sequence_length: int, model_vocab_size: int) -> Path:
    """``data.path``, or the folder of the generated data, which is built (seconds) when the cache lacks it.

    Call it on one process a node before the others do, and no work is done twice.
    """
    if data.path is not None:
        return Path(data.path).expanduser()
    return embedded_data(
        cache_dir(),
        seed=_CORPUS_SEED,
        sequences=data.generated_sequences,
        sequence_length=sequence_length,
        model_vocab_size=model_vocab_size,
    )


def open_data(  # noqa: PLR0913 - what the plan says, and where this rank stands
    data: DataSpec,
    hyper_parameters: HyperParameters,
    model_vocab_size: int,
    *,
    rank: int,
    world_size: int,
    verify: bool,
) -> TokenReader:
    """The reader of a data parallel rank, checked against batch size and model before a step is taken.

    Raises ``UsageError`` as ``TokenReader`` does, for a data set smaller than a global batch, and for one whose
    ids the model's embedding cannot hold (on an accelerator that would end in a device-side assertion).
    """
    reader = TokenReader(
        data_folder(data, hyper_parameters.sequence_length, model_vocab_size),
        hyper_parameters.sequence_length,
        rank=rank,
        world_size=world_size,
        local_batch_size=hyper_parameters.local_batch_size,
        seed=hyper_parameters.seed,
        verify=verify,
    )
    reader.steps_per_epoch(hyper_parameters.gradient_accumulation_steps)
    if reader.manifest.vocab_size > model_vocab_size:
        raise UsageError(
            f"data set {reader.manifest.name!r} has a vocabulary of {reader.manifest.vocab_size}, "
            f"the model one of {model_vocab_size}",
            "prepare the data with the model's tokenizer, or raise model.vocab_size",
        )
    return reader
