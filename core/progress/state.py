"""Where a run is, folded from the events of the ranks that are followed: what every view and sink shows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final, get_args

from core import metrics, summary
from schemas import event as ev
from schemas.chip import TelemetryReading
from schemas.plan import Plan
from schemas.record import Mfu, Parameters

STAGES: Final = ("launch", *get_args(ev.Phase), "done")
"""A rank's phases; before them that nothing was heard of it, after them that it has done its work."""
SILENT_S = 10.0
"""No progress for this long is worth a word; so is less, of a rank that others wait for with their steps."""
SILENT_STEPS = 5
BEHIND_S = 2.0
BEHIND_STEPS = 3


class Window:
    """Steps that a rank's rate is taken of: the measured window so far; in warm-up the last step alone."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0
        self.tokens = 0
        self.padded = 0
        """Tokens that count for nothing."""
        self.waited_s = 0.0
        """For data."""

    def add(self, step: ev.StepEvent) -> None:
        """One step more; one whose time is unknown tells nothing."""
        if step.step_time_s:
            self.steps += 1
            self.seconds += step.step_time_s
            self.tokens += step.real_tokens
            self.padded += step.padded_tokens
            self.waited_s += step.data_wait_s or 0.0


class RankState:
    """One rank; ``heard_s`` is when it made progress last."""

    def __init__(self, rank: int, heard_s: float) -> None:
        self.rank, self.heard_s = rank, heard_s
        self.stage = STAGES[0]
        self.failed: ev.Status | None = None
        self.step = 0
        """The last one that has ended."""
        self.done: tuple[int, int] | None = None
        """How much of how much, in a phase without steps."""
        self.window = Window()
        self.product_s: float | None = None
        self.memory_gib: float | None = None
        """The device's where telemetry tells, else what tensors hold; at the end the peak."""
        self.reading = TelemetryReading()

    @property
    def place(self) -> tuple[int, int]:
        """How far it has come, comparable between ranks."""
        return STAGES.index(self.stage), self.step

    def observe(self, event: ev.Event, now_s: float) -> None:
        """Take one of this rank's events into account."""
        if isinstance(event, ev.TelemetryEvent):
            self.reading = event.reading
            self.memory_gib = event.reading.memory_used_gib or self.memory_gib
            return
        if isinstance(event, ev.HeartbeatEvent):
            return
        self.heard_s = now_s
        if isinstance(event, ev.PhaseEvent):
            self.stage, self.done = event.phase, None
            if event.phase == "measure":  # each repeat is a window of its own
                self.window = Window()
        elif isinstance(event, ev.StepEvent):
            self._step(event)
        elif isinstance(event, ev.ProgressEvent):
            self.done = event.done, event.total
        elif isinstance(event, ev.SpeedEvent):
            self.product_s = event.product_s
        elif isinstance(event, ev.MemoryEvent):
            peaks = event.memory
            self.memory_gib = peaks.peak_device_gib or peaks.peak_reserved_gib or peaks.peak_allocated_gib
        elif isinstance(event, ev.ErrorEvent):
            self.failed = event.status
        elif isinstance(event, ev.FinishEvent):
            self.stage = STAGES[-1]

    def _step(self, step: ev.StepEvent) -> None:
        if step.phase == "warmup":  # the first ones compile, and tell nothing of those that follow
            self.window = Window()
        self.window.add(step)
        self.step = step.step
        if self.reading.memory_used_gib is None:
            self.memory_gib = step.memory_allocated_gib


class RunState:
    """All followed ranks, and what they have in common; ``now_s`` is any monotonic clock."""

    def __init__(self, plan: Plan, ranks: range, now_s: float) -> None:
        self.plan, self.started_s, self.stage_since_s = plan, now_s, now_s
        self.ranks = {rank: RankState(rank, now_s) for rank in ranks}
        self.stage = STAGES[0]
        """The least advanced rank's; ranks that have failed count only where all have."""
        self.last_step: ev.StepEvent | None = None
        """Of the first of the ranks; the loss is the same on all."""
        self._before = 0
        """Steps that a checkpoint's run had taken."""
        self.capacity_gib: float | None = None
        self._parameters: Parameters | None = None

    def observe(self, event: ev.Event, now_s: float) -> None:
        """Take an event into account; those of ranks that are not followed change nothing."""
        rank = self.ranks.get(event.rank)
        if rank is None:
            return
        rank.observe(event, now_s)
        if isinstance(event, ev.StepEvent) and event.rank == min(self.ranks):
            self._before = event.step - 1 if self.last_step is None else self._before
            self.last_step = event
        elif isinstance(event, ev.ModelEvent):
            self._parameters = summary.parameters(event)
        elif isinstance(event, ev.MemoryEvent):
            self.capacity_gib = event.memory.capacity_gib
        elif isinstance(event, (ev.PhaseEvent, ev.ErrorEvent, ev.FinishEvent)):
            self._advance(now_s)

    def _advance(self, now_s: float) -> None:
        stage = min(self._running(), key=lambda rank: rank.place).stage
        if stage != self.stage:
            self.stage, self.stage_since_s = stage, now_s

    def _running(self) -> list[RankState]:
        return [rank for rank in self.ranks.values() if rank.failed is None] or list(self.ranks.values())

    @property
    def step(self) -> int:
        """The last step that all ranks have ended."""
        return min(rank.step for rank in self._running())

    @property
    def total_steps(self) -> int | None:
        """Warm-up included; until the window is planned the warm-up's alone."""
        if self.last_step is None or self.last_step.total_steps is None:
            return self._before + self.plan.measure.warmup_steps if self.stage == "warmup" else None
        return self.last_step.total_steps

    @property
    def done(self) -> tuple[int, int | None]:
        """Steps, or what a phase without steps counts, of how many; of the rank that has come the least far."""
        counts = [rank.done for rank in self._running() if rank.stage == self.stage and rank.done is not None]
        return min(counts) if counts else (self.step, self.total_steps)

    @property
    def step_time_s(self) -> float | None:
        """The mean over the window."""
        timed = [rank.window.seconds / rank.window.steps for rank in self.ranks.values() if rank.window.steps]
        return statistics.fmean(timed) if timed else None

    @property
    def tokens_per_second_per_chip(self) -> float | None:
        """Over the window so far, by the record's rule; each rank by its own time, since some are a step ahead."""
        windows = {rank.rank: rank.window for rank in self.ranks.values() if rank.window.steps}
        if not windows:
            return None
        rates = {rank: window.tokens / window.seconds for rank, window in windows.items()}
        return summary.tokens_per_second_per_chip(self.plan, rates, 1.0)

    @property
    def mfu(self) -> Mfu | None:
        """Of that rate, as the record has it.

        How long sequences with padding are, and how many images they hold, is only known when the window has
        ended: without that there is no ``palm`` share.
        """
        rate = self.tokens_per_second_per_chip
        if not rate or self._parameters is None:
            return None
        work, peak = metrics.Work.of(self.plan, self._parameters), self.plan.chip.peak(self.plan.compute_precision)
        shares = metrics.mfu(rate, work, peak)
        whole = self.plan.vision is None and not any(rank.window.padded for rank in self.ranks.values())
        return shares if whole else shares.model_copy(update={"palm": None})

    @property
    def left_s(self) -> float | None:
        """How long the steps that are left will take; None while that cannot be told."""
        step_s = self.step_time_s
        if self.stage != "measure" or self.total_steps is None or step_s is None:
            return None
        return (self.total_steps - self.step) * step_s

    def known(self, value: Callable[[RankState], float | None]) -> dict[int, float]:
        """Rank -> value, of those that have one."""
        return {rank.rank: found for rank in self.ranks.values() if (found := value(rank)) is not None}

    def behind(self, now_s: float) -> list[RankState]:
        """Ranks that others wait for: not as far as the first, and silent; the longest silent one first."""
        running = self._running()
        front = max(rank.place for rank in running)
        step_s = self.step_time_s
        patience_s = SILENT_S if step_s is None else max(BEHIND_S, BEHIND_STEPS * step_s)
        late = [rank for rank in running if rank.place < front and now_s - rank.heard_s > patience_s]
        return sorted(late, key=lambda rank: rank.heard_s)

    def silent_s(self, now_s: float) -> float | None:
        """How long no rank has ended a step; None before the first, and while that is no reason to wonder."""
        silent_s = now_s - max(rank.heard_s for rank in self._running())
        if self.step_time_s is None or self.stage not in ("warmup", "measure"):
            return None
        return silent_s if silent_s > max(SILENT_S, SILENT_STEPS * self.step_time_s) else None
