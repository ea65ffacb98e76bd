"""One rank that trains a small LLaVA under several layouts; ``main`` prints their losses.

In the first step rank 0's sequences hold images and rank 1's do not, in the second it is the other way round, in
the third none does, then all do.
"""

from __future__ import annotations

import functools
import json
import os
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from core import cases, defaults, plan, plugins
from core.data.conversations.reader import image_arrays
from core.data.loader import StepBatch
from core.engines.base import load_engine
from core.models.cross_entropy import Losses
from core.models.llava import Llava
from schemas.plan import Plan

SEQUENCES, LENGTH, VOCABULARY, IMAGE_AT = 4, 24, 64, 3
WITH_IMAGE = ((0, 1), (2, 3), (), (0, 1, 2, 3))
"""Of each step, the sequences that hold an image."""
LAYOUTS = {
    "one": ("torch", {"zero_stage": 0}),
    "DDP": ("torch", {"zero_stage": 0}),
    "FSDP2": ("torch", {"zero_stage": 3}),
    "FSDP2 stage 2": ("torch", {"zero_stage": 2}),
    "FSDP2 compiled": ("torch", {"zero_stage": 3, "compile": True, "loss": "chunked", "padding": "dropped"}),
    "ZeRO-3": ("deepspeed", {"zero_stage": 3}),
    "ZeRO-2": ("deepspeed", {"zero_stage": 2}),
}


def part(step: int, rows: range, planned: Plan) -> StepBatch:
    """One micro-batch of ``rows``, whose ends are padding; the labels of later sequences are masked more."""
    vision = planned.vision
    assert vision is not None
    random = np.random.default_rng(step)
    tokens = random.integers(1, VOCABULARY, (SEQUENCES, LENGTH))
    pixels = random.normal(size=(SEQUENCES, 3, vision.image_size, vision.image_size)).astype(np.float32)
    labels = tokens.copy()
    real = np.zeros((SEQUENCES, LENGTH), dtype=bool)
    for row in range(SEQUENCES):
        labels[row, : 8 + 3 * row] = -100
        real[row, : LENGTH - 2 * ((row + step) % 3)] = True
    labels[~real] = -100
    held = [row for row in WITH_IMAGE[step % len(WITH_IMAGE)] if row in rows]
    starts = [(row - rows.start) * LENGTH + IMAGE_AT for row in held]
    own = slice(rows.start, rows.stop)
    arrays = image_arrays(starts, [pixels[row] for row in held], vision)
    arrays |= {"input_ids": tokens[own], "labels": labels[own]}
    if planned.hyper_parameters.padding == "dropped":
        arrays["kept"] = np.flatnonzero(real[own])
    micro = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return StepBatch([micro], int((labels[own] != -100).sum()), tokens[own].size, 0)


def without_the_vision_path(
    self: Llava, input_ids: Tensor, labels: Tensor, *, pixel_values: Tensor, image_positions: Tensor
) -> Losses:
    """The planted fault: a batch of text takes a short cut."""
    inserted = (self.image_tokens(pixel_values), image_positions) if len(image_positions) else None
    losses: Losses = self.lm_head(self.model(input_ids, inserted), labels)
    return losses


def train(layout: str, stage: str, steps: int) -> dict[str, Any]:
    """Losses and gradient norms of every step."""
    rank, world = dist.get_rank(), dist.get_world_size()
    engine_name, own = LAYOUTS[layout]
    loaded = cases.resolve("llava1_5_13b")
    config = loaded.config("CPUx1x2")
    sets = {
        "model.hidden_size": 32, "model.intermediate_size": 48, "model.vocab_size": VOCABULARY,
        "vision.image_size": 28, "stage": stage, "sequence_length": LENGTH, "learning_rate": 1e-2,
        "local_batch_size": SEQUENCES // world, "schedule": "constant", "lr_warmup_steps": 0,
    } | own  # fmt: skip
    request = plan.Request(
        loaded, config, config.value.runs[1], plugins.select("cpu"), engine_name, sets, (1, world)
    )
    planned = plan.build(request)
    vendor = plugins.load_alone("cpu", planned.vendor_distribution, defaults)
    device = vendor.init_device(planned, rank)
    vendor.prepare_engine(planned, device)
    engine = load_engine(engine_name)(planned, device)
    engine.setup(
        lambda part: vendor.build_model(loaded.case, planned, device, part),
        lambda optimizer, model: vendor.optimizer_wrap(optimizer, model, planned, device),
    )
    per_rank = SEQUENCES // world
    rows = range(rank * per_rank, (rank + 1) * per_rank)
    results = [engine.step(part(step, rows, planned), 1e-2) for step in range(steps)]
    norms = [result.grad_norm for result in results]
    told = {
        "losses": [result.loss.item() for result in results],
        "norms": [None if norm is None else norm.item() for norm in norms],
    }
    engine.close()
    return told


def main(job: dict[str, Any]) -> None:
    """Train under each layout in turn and print what came out."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job['store']}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=job["patience_s"]),
    )
    # What is traced is tested here, and not the code generator, which takes minutes on a CPU.
    torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]
    if job["fault"]:
        Llava.forward = without_the_vision_path  # type: ignore[method-assign, assignment]
    told = {f"{layout} {stage}": train(layout, stage, job["steps"]) for layout, stage in job["layouts"]}
    if dist.get_rank() == 0:
        print(json.dumps(told))
    dist.destroy_process_group()
