"""What a contender's process does around its step: options, process group, the window, the result."""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.benchmarks.work import Result, Work

MicroBatch = tuple[Tensor, Tensor]
"""Token ids and the labels that each position has to predict, int64 ``[LBS, S]``, on the device."""
Step = Callable[[list[MicroBatch]], Tensor]
"""One optimizer step over GAS micro-batches; its mean loss, left on the device."""
Build = Callable[[Work, argparse.Namespace, torch.device], Step]

PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "deepspeed", "torchtitan")
DISTINCT_STEPS = 4
"""Steps whose tokens differ; they lie on the device before anything is timed."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every contender has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--work", type=Path, required=True, help="a Work as JSON")
    made.add_argument("--result", type=Path, required=True, help="where rank 0 writes its Result")
    made.add_argument("--micro-batch", type=int, required=True, metavar="LBS")
    return made


def main(build: Build, options: argparse.ArgumentParser, *, tokens_on_host: bool = False) -> None:
    """Measure what ``build`` makes, write the result, and leave without waiting for other ranks.

    ``tokens_on_host``: for steps that copy their tokens to the device themselves.
    """
    given = options.parse_args()
    work = Work.model_validate_json(given.work.read_text())
    device = _join(work)
    tokens = batches(work, given.micro_batch, torch.device("cpu") if tokens_on_host else device)
    try:
        result = measure(build(work, given, device), tokens, work, given.micro_batch, device)
    except Exception as error:
        traceback.print_exc()
        status = "oom" if isinstance(error, torch.OutOfMemoryError) else "failed"
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        result = Result(status=status, reason=reason, micro_batch=given.micro_batch, versions=versions(work))
    # Of a failure, any rank tells; of a window, rank 0 tells for all.
    if result.status != "ok" or dist.get_rank() == 0:
        given.result.write_text(result.model_dump_json())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if result.status == "ok" else 1)


def _join(work: Work) -> torch.device:
    local = int(os.environ["LOCAL_RANK"])
    if work.device == "cpu":
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def batches(work: Work, micro_batch: int, device: torch.device) -> Iterator[list[MicroBatch]]:
    """Steps of random tokens without end; other ranks have others."""
    generator = torch.Generator().manual_seed(work.seed + dist.get_rank())
    shape = (DISTINCT_STEPS, work.sequences // micro_batch, micro_batch, work.sequence_length + 1)
    tokens = torch.randint(0, work.model.vocab_size, shape, generator=generator).to(device)
    steps = [[(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in step] for step in tokens]
    return itertools.cycle(steps)


def measure(
    step: Step, prepared: Iterator[list[MicroBatch]], work: Work, micro_batch: int, device: torch.device
) -> Result:
    """Warm up, then one window between two synchronisations; nothing of ours in it waits for the device."""
    times_s = []
    for _ in range(work.warmup_steps):
        begin = time.perf_counter()
        step(next(prepared))
        _synchronize(device)
        times_s.append(time.perf_counter() - begin)
    steps = max(work.steps, math.ceil(1.05 * work.min_window_s / min(times_s)))
    steps = int(_largest(steps, device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    dist.barrier()
    begin = time.perf_counter()
    losses = [step(next(prepared)) for _ in range(steps)]
    _synchronize(device)
    window_s = _largest(time.perf_counter() - begin, device)
    first, last = float(losses[0]), float(losses[-1])
    if not (math.isfinite(first) and math.isfinite(last)):
        raise ArithmeticError(f"the loss went from {first} to {last}")
    return Result(
        status="ok",
        micro_batch=micro_batch,
        tokens_per_second_per_gpu=steps * work.tokens_per_step / window_s,
        steps=steps,
        window_s=window_s,
        peak_memory_gib=torch.cuda.max_memory_reserved() / 2**30 if device.type == "cuda" else None,
        first_loss=first,
        last_loss=last,
        versions=versions(work),
    )


def versions(work: Work) -> dict[str, str]:
    """Of what a contender may use, and of the machine."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if work.device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return found


def optimizer_settings(work: Work) -> dict[str, Any]:
    """AdamW's, as torch names them."""
    return {
        "lr": work.learning_rate,
        "betas": (work.adam_beta1, work.adam_beta2),
        "eps": work.adam_eps,
        "weight_decay": work.weight_decay,
        "fused": work.device == "cuda",
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _largest(value: float, device: torch.device) -> float:
    """Of all ranks."""
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return float(shared)
