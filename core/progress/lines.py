"""Progress in a log: a line a phase, one every few seconds of training, and a sign of life now and then."""

from __future__ import annotations

from rich.console import Console

from core.progress import facts
from core.progress.state import RunState
from schemas import event as ev
from schemas.plan import Plan

LINE_EVERY_S = 5.0
SIGN_OF_LIFE_S = 60.0
"""A line comes after this long in any case, say while a model compiles."""


class Lines:
    """Plain lines, which a file can hold."""

    def __init__(self, plan: Plan, ranks: range, console: Console, now_s: float) -> None:
        self._state, self._console = RunState(plan, ranks, now_s), console
        self._stage, self._step, self._told = self._state.stage, 0, now_s
        self._due = now_s
        self.say(facts.title(plan))

    def show(self, event: ev.Event, now_s: float) -> None:
        """Take one event into account."""
        state = self._state
        state.observe(event, now_s)
        stepped, self._step = state.step != self._step, state.step
        if line := facts.line(event):
            self.say(line)
        elif state.stage != self._stage:
            self._stage = state.stage
            self._tell(f"phase {state.stage}", now_s)
        elif stepped and (now_s >= self._due or state.step == state.total_steps):
            self._due = now_s + LINE_EVERY_S
            self._tell(self._progress(), now_s)

    def tick(self, now_s: float) -> None:
        """Say that the run is alive, where nothing else was said for long."""
        if now_s - self._told >= SIGN_OF_LIFE_S:
            state = self._state
            since = f"phase {state.stage} for {facts.clock(now_s - state.stage_since_s)}"
            told = [since, facts.done(state), facts.stages(state) if len(state.ranks) > 1 else None]
            self._tell(", ".join(text for text in told if text), now_s)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Nothing is to be left behind."""

    def _tell(self, text: str, now_s: float) -> None:
        stalled = facts.stalled(self._state, now_s)
        self._told = now_s
        self.say(f"{text}, stalled: {stalled}" if stalled else text)

    def _progress(self) -> str:
        state = self._state
        rate, share, left = facts.rate(state), facts.mfu(state), state.left_s
        told = [
            f"{state.stage} step {facts.done(state)}",
            f"loss {facts.loss(state)}",
            f"{rate or '-'} token/p/s",
            f"MFU {share}" if share else None,
            facts.memory(state),
            facts.power(state),
            f"{facts.clock(left)} left" if left else None,
        ]
        return ", ".join(text for text in told if text)
