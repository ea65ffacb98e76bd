"""How far one rank has come, from its events, and whether it has been silent for too long."""

from __future__ import annotations

from schemas import event as ev
from schemas.hyperparameters import Measure


class RankWatch:
    """One rank's progress; ``now`` is any monotonic clock, in seconds."""

    def __init__(self, rank: int, measure: Measure, now: float) -> None:
        self.rank = rank
        self.ended = False
        self._measure, self._heard = measure, now
        self._phase: ev.Phase = "start"
        self._begun = False
        self._step = 0

    def observe(self, event: ev.Event, now: float) -> None:
        """Take one of this rank's events into account.

        Telemetry and heartbeats come from threads of their own, which go on while a collective hangs.
        """
        if isinstance(event, (ev.TelemetryEvent, ev.HeartbeatEvent)):
            return
        self._heard, self._begun = now, True
        if isinstance(event, ev.PhaseEvent):
            self._phase = event.phase
        elif isinstance(event, ev.StepEvent):
            self._step = event.step
        elif isinstance(event, (ev.ErrorEvent, ev.FinishEvent)):
            self.ended = True

    def overdue(self, now: float) -> str | None:
        """Why this rank counts as hanging; None while it does not."""
        setting, limit_s = self._limit()
        silent_s = now - self._heard
        if self.ended or silent_s <= limit_s:
            return None
        return f"no progress for {silent_s:.0f} s (measure.{setting} is {limit_s:g})"

    @property
    def place(self) -> str:
        """Where it was heard of last."""
        if not self._begun:
            return "before it started"
        return f"after step {self._step}" if self._step else f"in phase {self._phase}"

    def _limit(self) -> tuple[str, float]:
        if self._phase in {"start", "device"}:
            return "start_timeout_s", self._measure.start_timeout_s
        if self._step == 0:
            return "setup_timeout_s", self._measure.setup_timeout_s
        return "timeout_s", self._measure.timeout_s
