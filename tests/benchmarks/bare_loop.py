"""The loop that one would write by hand around a model and an optimizer that exist already."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from core.clock import DeviceClock
from core.engines.base import Engine
from core.errors import UsageError
from core.loop import Loop
from core.optimizers import takes_grad_scale
from core.schedule import learning_rate
from schemas.plan import Plan

DISTINCT_STEPS = 4


class BareLoop:
    """Forward, backward, clip, step, with nothing around; of engine deepspeed its engine's own three calls."""

    def __init__(self, plan: Plan, engine: Engine, loop: Loop) -> None:
        """Takes a few steps' batches of ``loop``; UsageError for what it would do differently from the engine."""
        hp = plan.hyper_parameters
        replicated = plan.topology.world_size > 1 and hp.zero_stage == 0 and plan.engine == "torch"
        among_peers = hp.collectives == "peer_copies" and hp.zero_stage == 2  # without FSDP2
        if plan.engine == "megatron" or replicated or among_peers or engine.scaler is not None:
            raise UsageError(
                f"engine {plan.engine}, ZeRO stage {hp.zero_stage}, collectives {hp.collectives}, precision "
                f"{hp.precision} has no bare loop",
                "take engine torch on one chip or sharded by FSDP2, or engine deepspeed, without a loss scaler",
            )
        self._model: Any = engine.trained_model()
        (self._optimizer,) = engine.optimizers
        self._autocast, self._deepspeed = engine.autocast, plan.engine == "deepspeed"
        self._once_a_step = isinstance(self._model, FSDPModule) and hp.zero_stage == 0
        """Whether gradients stay whole until the last micro-batch, as the engine keeps them."""
        self._clip = hp.clip_grad_norm
        self._clock = DeviceClock(engine.device)
        steps = [loop.next_batch() for _ in range(DISTINCT_STEPS)]
        self._labels = steps[0].label_tokens
        self._batches = itertools.cycle([step.micro_batches for step in steps])
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(hp, 1_000_000)

    def measure(self, steps: int) -> float:
        """Seconds of ``steps`` steps."""
        self._clock.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(steps):
            self._step(next(self._batches))
        self._clock.synchronize()
        return time.perf_counter() - begin

    def _step(self, micro_batches: Any) -> None:
        for number, micro_batch in enumerate(micro_batches, start=1):
            if self._once_a_step:
                self._model.set_requires_gradient_sync(number == len(micro_batches))
            if self._deepspeed:
                objective, _ = self._model(**micro_batch)
                self._model.backward(objective / self._labels, scale_wrt_gas=False)
                self._model.step()
                continue
            with self._autocast():
                objective, _ = self._model(**micro_batch)
            torch.autograd.backward(objective / self._labels)
        if not self._deepspeed:
            self._update()

    def _update(self) -> None:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm: Tensor = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self._clip > 0 and takes_grad_scale(self._optimizer):
            self._optimizer.grad_scale = ((norm + 1e-6) / self._clip).clamp(min=1.0)
        elif self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
