"""One rank of a small training job, for the engine tests: ``main`` prints losses and norms.

Every rank cuts its part out of the same global batch, whose labels are unevenly masked, so that a wrong
normalisation cannot hide.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from core import cases, defaults, plan, plugins
from core.data.loader import StepBatch
from core.engines.base import Engine, ModelFacts, load_engine
from core.layout import coordinates
from core.schedule import learning_rate
from schemas.plan import Plan
from tests.core.engines.file_window import offer_file_windows

GLOBAL_BATCH, LENGTH, VOCABULARY = 8, 32, 64
IGNORED = -100


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences with a structure that can be learned; most labels of the later ones are masked."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, VOCABULARY, (GLOBAL_BATCH, 1), generator=generator)
    tokens = (start + 3 * torch.arange(LENGTH + 1)) % VOCABULARY
    labels = tokens[:, 1:].clone()
    for row in range(GLOBAL_BATCH):
        labels[row, : row * (LENGTH // GLOBAL_BATCH)] = IGNORED
    return tokens[:, :-1].contiguous(), labels


def own_part(step: int, rank: int, replicas: int, local: int) -> StepBatch:
    """The micro-batches of data parallel rank ``rank``."""
    inputs, labels = global_batch(step)
    per_rank = GLOBAL_BATCH // replicas
    mine = slice(rank * per_rank, (rank + 1) * per_rank)
    pairs = zip(inputs[mine].split(local), labels[mine].split(local), strict=True)
    micro = [{"input_ids": ids, "labels": own} for ids, own in pairs]
    counted = int((labels[mine] != IGNORED).sum())
    return StepBatch(micro_batches=micro, label_tokens=counted, real_tokens=inputs[mine].numel(), padded_tokens=0)


def mean_of_means(self: Engine, batch: StepBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The planted fault: each replica divides by its own labels, then replicas are averaged."""
    tokens = torch.tensor(float(batch.label_tokens))
    dist.all_reduce(tokens, group=self.data_group)
    return torch.tensor(1.0 / batch.label_tokens), tokens


class VendorsAdamW(torch.optim.AdamW):
    """What a vendor's ``optimizer_wrap`` puts in the place of core's."""


@dataclass
class Job:
    """One engine, set up on this rank, and what it was set up of."""

    plan: Plan
    engine: Engine
    rank: int
    facts: ModelFacts
    held: dict[int, int]
    """Parameters of each stage on this rank."""

    def train(self, first: int, last: int) -> tuple[list[float], list[float]]:
        """Losses and gradient norms of the steps ``first`` to ``last``."""
        losses, norms = [], []
        data = coordinates(self.plan.parallel, self.rank).data
        for step in range(first, last + 1):
            batch = own_part(step, data, self.plan.parallel.dp, self.plan.hyper_parameters.local_batch_size)
            result = self.engine.step(batch, learning_rate(self.plan.hyper_parameters, step))
            losses.append(result.loss.item())
            norms.append(math.nan if result.grad_norm is None else result.grad_norm.item())
        return losses, norms


def meet(store: str) -> tuple[int, int]:
    """Join the other ranks; rank and world size."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    offer_file_windows(Path(store).parent)
    return rank, world


def set_up(job: dict[str, Any], rank: int, world: int) -> Job:
    """Plan a tiny model and let the job's engine build it; the ranks have met."""
    given: dict[str, int] = dict(job["sets"])
    replicas = world // (given.get("tensor_parallel", 1) * given.get("pipeline_parallel", 1))
    sets = {
        "model.hidden_size": 32, "model.intermediate_size": 48, "model.num_layers": 2, "model.num_heads": 4,
        "model.num_kv_heads": 4, "model.vocab_size": VOCABULARY, "sequence_length": LENGTH,
        "local_batch_size": 2, "gradient_accumulation_steps": GLOBAL_BATCH // replicas // 2,
        "learning_rate": 1e-2, "clip_grad_norm": 0.5,
        "lr_warmup_steps": 2, "schedule": "cosine", "schedule_steps": 20,
    } | given  # fmt: skip
    loaded = cases.resolve(job["case"])
    config = loaded.config("CPUx1x2")
    request = plan.Request(
        loaded, config, config.value.runs[0], plugins.select("cpu"), job["engine"], sets, (1, world)
    )
    planned = plan.build(request)
    vendor = plugins.load_alone("cpu", planned.vendor_distribution, defaults)
    device = vendor.init_device(planned, rank)
    vendor.prepare_engine(planned, device)
    engine_class = load_engine(planned.engine)
    if job.get("fault") == "mean_of_means":
        engine_class.gradient_scale = mean_of_means  # type: ignore[method-assign]
    engine = engine_class(planned, device)
    held: dict[int, int] = {}

    def build_model(stage: int) -> torch.nn.Module:
        model = vendor.build_model(loaded.case, planned, device, stage)
        held[stage] = sum(parameter.numel() for parameter in model.parameters())
        return model

    def optimizer_wrap(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
        if job.get("wrap"):
            return VendorsAdamW(optimizer.param_groups)
        return vendor.optimizer_wrap(optimizer, model, planned, device)

    return Job(planned, engine, rank, engine.setup(build_model, optimizer_wrap), held)


def main(job: dict[str, Any]) -> None:
    """Train and print."""
    rank, world = meet(job["store"])
    ready = set_up(job, rank, world)
    losses, norms = ready.train(1, job["steps"])
    if rank == 0:
        placement, facts = ready.plan.placement, ready.facts
        placed = placement.ranks[rank].parameters if placement else facts.parameters.total
        told = {"optimizer": facts.optimizer, "parameters": facts.parameters._asdict(), "placed": placed}
        told |= {"stages": list(ready.held), "held": sum(ready.held.values())}
        print(json.dumps({"losses": losses, "norms": norms} | told))
    ready.engine.close()
    dist.destroy_process_group()
