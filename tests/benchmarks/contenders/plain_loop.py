"""A plain loop around the model, as one would write it; with Liger and torch.compile the easy way to speed.

One GPU: everything in bf16, or FSDP2 of one rank where main weights are fp32. Several: FSDP2 over the layers.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tests.benchmarks.contenders.harness import MicroBatch, Step, main, optimizer_settings, parser
from tests.benchmarks.contenders.models import DTYPES, WithLoss
from tests.benchmarks.work import Work


def build(work: Work, given: argparse.Namespace, device: torch.device) -> Step:
    """The model, its optimizer, and a step with both."""
    model = WithLoss(work, device, given.attention, fused_loss=given.fused_loss, compiled=given.compile)
    model.cast(DTYPES[work.optimizer_state])
    if given.checkpointing:
        model.recompute()
    sharded = dist.get_world_size() > 1 or work.optimizer_state != work.precision
    if given.compile:
        model.compile_blocks()
    if sharded:
        policy = MixedPrecisionPolicy(param_dtype=DTYPES[work.precision], reduce_dtype=torch.float32)
        for block in model.blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), **optimizer_settings(work))

    def step(micro_batches: list[MicroBatch]) -> Tensor:
        total = torch.zeros((), device=device)
        for input_ids, labels in micro_batches:
            loss = model(input_ids, labels) / len(micro_batches)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), work.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def options() -> argparse.ArgumentParser:
    """This contender's own."""
    made = parser(__doc__)
    made.add_argument("--attention", choices=("eager", "sdpa"), default="sdpa")
    made.add_argument(
        "--checkpointing", action="store_true", help="compute every layer again in the backward pass"
    )
    made.add_argument("--fused-loss", action="store_true", help="Liger's fused linear cross-entropy")
    made.add_argument("--compile", action="store_true")
    return made


if __name__ == "__main__":
    main(build, options())
