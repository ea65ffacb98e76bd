"""Warm up, then measure. The one place where steps are timed.

The measured window opens and closes with a device synchronisation. Inside it the host waits only for the step
before the last one to end (so that it never runs more than ``IN_FLIGHT`` steps ahead) and reads that step's
loss; the device always has a whole step queued, so it is never kept waiting.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from core import memory
from core.clock import DeviceClock
from core.data.loader import DeviceLoader, StepBatch
from core.engines.base import Engine
from core.errors import AccelMarkError, UsageError
from core.events import EventLog
from core.schedule import learning_rate
from core.speed import product_time_s
from core.trace import trace_steps
from schemas import event as ev
from schemas.plan import Plan

IN_FLIGHT = 2
"""Steps the host may be ahead of the device."""
WINDOW_MARGIN = 1.05
"""The window is planned this much longer than its minimum, since warm-up only estimates the step time."""
MOST_SKIPPED = 20
"""Steps in a row that a loss scaler may skip. It begins at 2^16 and halves its scale each time: below 1 it was not
the scale that made gradients overflow, and no step will ever train."""


class NonFiniteError(AccelMarkError):
    """The loss or the gradient norm became NaN or infinite."""

    def __init__(self, step: int, loss: float, grad_norm: float | None) -> None:
        """``grad_norm`` None: the engine does not tell it."""
        norm = "" if grad_norm is None else f" and gradient norm {grad_norm:.6g}"
        super().__init__(
            f"loss is {loss:.6g}{norm}",
            "lower learning_rate, or use a precision with more range (bf16 rather than fp16)",
        )
        self.step = step


@dataclass
class _Pending:
    """A step that is queued; its scalars are on their way to the host."""

    step: int
    phase: Literal["warmup", "measure"]
    batch: StepBatch
    learning_rate: float
    start: Any
    end: Any
    scalars: torch.Tensor
    norm_told: bool
    allocated_gib: float | None
    data_wait_s: float


class Loop:
    """Runs ``engine`` over ``loader`` and reports every step to ``log``; goes on after ``step``."""

    def __init__(self, plan: Plan, engine: Engine, loader: DeviceLoader, log: EventLog, step: int = 0) -> None:
        self._plan, self._engine, self._log = plan, engine, log
        self._clock = DeviceClock(engine.device)
        self._ahead = IN_FLIGHT if self._clock.asynchronous else 0
        self._loader = loader
        self._batches = iter(loader)
        self._pending: deque[_Pending] = deque()
        self._step = step
        self._total: int | None = None
        self._step_times_s: list[float] = []
        self._skipped = 0

    @property
    def step(self) -> int:
        """The step that was begun last."""
        return self._step

    def run(self) -> None:
        """Warm up, then measure; ``NonFiniteError``, or ``UsageError`` for epochs that are too short."""
        self.warm_up()
        steps = self._measured_steps()
        self._total = self._step + steps * self._plan.measure.repeat
        self._log.emit(ev.SpeedEvent, product_s=product_time_s(self._engine.device, self._clock))
        memory.reset_peaks(self._engine.device)
        for _ in range(self._plan.measure.repeat):
            self.measure(steps)

    def warm_up(self) -> None:
        """The steps that are dropped; ``NonFiniteError``."""
        self._log.emit(ev.PhaseEvent, phase="warmup")
        for _ in range(self._plan.measure.warmup_steps):
            self._enqueue("warmup")
        self._drain()

    def profile(self, run_dir: Path) -> None:
        """Trace the steps that the plan asks for, on rank 0; the others take part in them."""
        self._log.emit(ev.PhaseEvent, phase="profile")
        steps = self._plan.measure.profile_steps
        if dist.get_rank() == 0:
            traced = trace_steps(self._untimed_step, steps, self._clock.synchronize, run_dir)
            self._log.emit(ev.ProfileEvent, profile=traced)
        else:
            for _ in range(1 + steps):  # the leading one of ``trace_steps``, too
                self._untimed_step()
            self._clock.synchronize()

    def next_batch(self) -> StepBatch:
        """What the next step would train on."""
        return next(self._batches)

    def _untimed_step(self) -> None:
        rate = self._begin_step()
        self._engine.step(self.next_batch(), rate)

    def _begin_step(self) -> float:
        """Count the next step; its learning rate."""
        self._step += 1
        return learning_rate(self._plan.hyper_parameters, self._step, self._loader.epochs_at(self._step - 1))

    def measure(self, steps: int) -> float:
        """One measured window; how long it took, in seconds. ``NonFiniteError``."""
        self._synchronize()
        self._log.emit(ev.PhaseEvent, phase="measure")
        started = time.perf_counter()
        totals = Counter[str]()
        for _ in range(steps):
            totals.update(_counts(self._enqueue("measure")))
        self._clock.synchronize()
        window_s = time.perf_counter() - started
        self._drain()
        self._log.emit(
            ev.WindowEvent,
            window_s=window_s,
            steps=steps,
            epochs=self._loader.epochs_at(self._step),
            **totals,
        )
        return window_s

    def _measured_steps(self) -> int:
        """Enough steps for the shortest window, the same on every rank: the slowest rank's estimate."""
        measure = self._plan.measure
        if measure.epochs is not None:
            return self._rest_of(measure.epochs)
        if self._plan.chip.reference:
            return measure.steps
        step_s = statistics.median(self._step_times_s[-3:])
        steps = max(measure.steps, math.ceil(measure.min_window_s * WINDOW_MARGIN / step_s))
        agreed = torch.tensor(steps, device=self._engine.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return int(agreed.item())

    def _rest_of(self, epochs: int) -> int:
        """Steps until so many epochs have ended."""
        total = epochs * self._loader.steps_per_epoch
        if total <= self._step:
            raise UsageError(
                f"{epochs} epochs are {total} steps, which the warm-up of {self._step} leaves nothing of",
                "raise measure.epochs, lower measure.warmup_steps, or use more data (data.generated_sequences)",
            )
        return total - self._step

    def _synchronize(self) -> None:
        """All ranks at the same point, with nothing queued on any device."""
        self._clock.synchronize()
        dist.barrier()

    def _enqueue(self, phase: Literal["warmup", "measure"]) -> StepBatch:
        rate = self._begin_step()
        start = self._clock.mark()
        asked = time.perf_counter()
        batch = self.next_batch()
        waited_s = time.perf_counter() - asked
        result = self._engine.step(batch, rate)
        norm = torch.full_like(result.loss, math.nan) if result.grad_norm is None else result.grad_norm
        scalars = torch.stack([result.loss.float(), norm.float()])
        host = torch.empty(2, pin_memory=scalars.device.type != "cpu").copy_(scalars, non_blocking=True)
        allocated = memory.allocated_gib(self._engine.device)
        end = self._clock.mark()
        told = result.grad_norm is not None
        self._pending.append(_Pending(self._step, phase, batch, rate, start, end, host, told, allocated, waited_s))
        while len(self._pending) > self._ahead:
            self._resolve(self._pending.popleft())
        return batch

    def _drain(self) -> None:
        while self._pending:
            self._resolve(self._pending.popleft())

    def _resolve(self, done: _Pending) -> None:
        """Wait for a step to end on the device, then report it."""
        self._clock.wait(done.end)
        step_s = self._clock.seconds_between(done.start, done.end)
        self._step_times_s.append(step_s)
        loss, norm = done.scalars.tolist()
        finite = math.isfinite(loss)
        overflowed = done.norm_told and not math.isfinite(norm)
        self._skipped = self._skipped + 1 if overflowed else 0
        # A loss scaler tries a scale that overflows, and then skips the step: that is its way.
        may_skip = MOST_SKIPPED if self._plan.compute_precision == "fp16" else 0
        self._log.emit(
            ev.StepEvent,
            phase=done.phase,
            step=done.step,
            total_steps=self._total,
            step_time_s=step_s,
            loss=loss if finite else None,
            grad_norm=norm if math.isfinite(norm) else None,
            learning_rate=done.learning_rate,
            label_tokens=done.batch.label_tokens,
            real_tokens=done.batch.real_tokens,
            padded_tokens=done.batch.padded_tokens,
            memory_allocated_gib=done.allocated_gib,
            data_wait_s=done.data_wait_s,
        )
        if not finite or self._skipped > may_skip:
            raise NonFiniteError(done.step, loss, norm if done.norm_told else None)


def _counts(batch: StepBatch) -> dict[str, int]:
    """What a window sums up; its batches themselves must not stay on the device."""
    return {
        "real_tokens": batch.real_tokens,
        "padded_tokens": batch.padded_tokens,
        "images": batch.images,
        "squared_lengths": batch.squared_lengths,
    }
