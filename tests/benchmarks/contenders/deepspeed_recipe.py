"""The published recipe: a plain model with full activation checkpointing under DeepSpeed's ZeRO."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.contenders.harness import MicroBatch, Step, main, optimizer_settings, parser
from tests.benchmarks.contenders.models import DTYPES, WithLoss
from tests.benchmarks.work import Work


def build(work: Work, given: argparse.Namespace, device: torch.device) -> Step:
    """DeepSpeed's engine, and a step with it."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__ = {}  # its table is made with compiler calls, half a minute of them
    model = WithLoss(work, device, given.attention, fused_loss=False).cast(DTYPES[work.precision])
    model.recompute()
    optimizer = torch.optim.AdamW(model.parameters(), **optimizer_settings(work))
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config(work, given.micro_batch, given.zero_stage)
    )

    def step(micro_batches: list[MicroBatch]) -> Tensor:
        total = torch.zeros((), device=device)
        for input_ids, labels in micro_batches:
            loss = engine(input_ids, labels)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / len(micro_batches)
        return total

    return step


def config(work: Work, micro_batch: int, zero_stage: int) -> dict[str, Any]:
    """DeepSpeed's JSON: what the recipe sets, and its defaults."""
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": work.sequences // micro_batch,
        "gradient_clipping": work.clip_grad_norm,
        "zero_optimization": {"stage": zero_stage, "overlap_comm": True, "contiguous_gradients": True},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
    if work.precision == "bf16":
        made["bf16"] = {"enabled": True}
        if work.optimizer_state == "bf16":
            made["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return made


def options() -> argparse.ArgumentParser:
    """This contender's own."""
    made = parser(__doc__)
    made.add_argument("--attention", choices=("eager", "sdpa"), default="sdpa")
    made.add_argument("--zero-stage", type=int, choices=(1, 2, 3), default=3)
    return made


if __name__ == "__main__":
    main(build, options())
