"""Format ``conversations``: the user's own files in LLaVA's layout, or generated ones."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from core.data.conversations.generate import CONVERSATIONS_FILE, GENERATOR_VERSION, Wanted, generate
from core.data.conversations.prompts import Template
from core.data.conversations.reader import ConversationReader, Layout
from core.data.conversations.samples import conversation_file
from core.data.embedded import GENERATED, cache_dir, make_folder, tokenizer_file
from core.data.lengths import LengthHistogram
from core.data.tokenizer import load
from core.errors import UsageError
from schemas.hyperparameters import Stage
from schemas.model import VisionSpec
from schemas.plan import Plan

_SEED = 0
"""Every run without a data set trains on these dialogues; the run's own seed only orders them."""
_TEMPLATES: dict[Stage, Template] = {"pretrain": "plain", "finetune": "v1"}
_DATA_FROM = (2048, 576)
"""Sequence length and tokens of an image that histograms of lengths refer to."""


def make(plan: Plan) -> None:
    """As ``core.data.catalog.Format``."""
    if plan.data.path is None:
        _generated(plan)


def open_source(plan: Plan, *, replica: int, verify: bool) -> ConversationReader:
    """As ``core.data.catalog.Format``; images are checked as they are read."""
    hp = plan.hyper_parameters
    file = _generated(plan) if plan.data.path is None else conversation_file(Path(plan.data.path).expanduser())
    tokenizer = load(tokenizer_file(plan))
    if tokenizer.vocab_size > plan.model.vocab_size:
        raise UsageError(
            f"the tokenizer has a vocabulary of {tokenizer.vocab_size}, the model one of {plan.model.vocab_size}",
            "take the model's own tokenizer, or raise model.vocab_size",
        )
    layout = Layout(
        template=_TEMPLATES[_stage(plan)],
        vision=_vision(plan),
        sequence_length=hp.sequence_length,
        by_length=_stage(plan) == "finetune",
        drop_padding=hp.padding == "dropped",
        local_batch_size=hp.local_batch_size,
        world_size=plan.parallel.dp,
        seed=hp.seed,
    )
    name = GENERATED if plan.data.path is None else plan.data.name
    reader = ConversationReader(file, tokenizer, layout, rank=replica, name=name)
    reader.steps_per_epoch(hp.gradient_accumulation_steps)
    return reader


def _generated(plan: Plan) -> Path:
    """The file of the generated dialogues, made (seconds) when the cache lacks it."""
    stage, vision = _stage(plan), _vision(plan)
    longest, image_tokens = _DATA_FROM
    wanted = Wanted(
        seed=_SEED,
        samples=plan.data.generated_sequences,
        template=_TEMPLATES[stage],
        image_size=vision.image_size,
        lengths=_lengths(plan)[stage],
        scale=(plan.hyper_parameters.sequence_length - vision.image_tokens) / (longest - image_tokens),
    )
    tokenizer = load(tokenizer_file(plan))
    made_by = f"{GENERATOR_VERSION} {importlib.metadata.version('pillow')} {tokenizer.sha256} {wanted!r}"
    folder = cache_dir() / f"conversations-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}"
    if not (folder / CONVERSATIONS_FILE).is_file():
        make_folder(folder, CONVERSATIONS_FILE, lambda scratch: generate(scratch, wanted, tokenizer))
    return folder / CONVERSATIONS_FILE


def _lengths(plan: Plan) -> Mapping[Stage, LengthHistogram]:
    if plan.data.generated_lengths is None:
        raise UsageError(
            f"case {plan.case!r} does not say how long generated dialogues are",
            "set data.path to dialogues of your own, or give the case's data generated_lengths",
        )
    module, _, name = plan.data.generated_lengths.partition(":")
    return cast(Mapping[Stage, LengthHistogram], getattr(importlib.import_module(module), name))


def _stage(plan: Plan) -> Stage:
    if plan.hyper_parameters.stage is None:
        raise UsageError(
            "data in format 'conversations' is read differently in each stage, and the run names none",
            "set stage to pretrain or finetune",
        )
    return plan.hyper_parameters.stage


def _vision(plan: Plan) -> VisionSpec:
    if plan.vision is None:
        raise UsageError(
            f"data in format 'conversations' holds images, and case {plan.case!r} has no vision tower",
            "give the case a vision part, or choose data in format 'tokens'",
        )
    return plan.vision
