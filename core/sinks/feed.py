"""Feeds sinks from a run's events, in a thread of the launcher; one that fails is dropped, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from core.console import complain
from core.progress.state import RunState
from core.relay import Relay
from core.sinks import Sink, open_sink, values
from schemas import event as ev
from schemas.plan import Plan
from schemas.record import Record

CLOSE_WITHIN_S = 60.0
"""How long the result waits for sinks that still write."""


class Feed:
    """The sinks ``names`` of one run; without any it does nothing. They are opened when the first event comes."""

    def __init__(self, names: Sequence[str], plan: Plan, run_dir: Path, console: Console) -> None:
        self._names, self._plan, self._run_dir, self._console = names, plan, run_dir, console
        self._sinks: dict[str, Sink] = {}
        self._record: Record | None = None
        self._state = RunState(plan, range(plan.topology.world_size), 0.0)
        self._relay = Relay(self._opened)

    def put(self, event: ev.Event) -> None:
        """Take one event; returns at once."""
        if self._names:
            self._relay.put(event)

    def finish(self, record: Record) -> None:
        """No event follows: tell the result, and wait until it is kept."""
        self._record = record
        if not self._relay.close(CLOSE_WITHIN_S):
            complain(self._console, f"sinks that have not ended after {CLOSE_WITHIN_S:.0f} s are left behind")

    def show(self, event: ev.Event, now_s: float) -> None:
        """In the thread: keep what is known after each step."""
        state = self._state
        state.observe(event, now_s)
        if event is state.last_step and isinstance(event, ev.StepEvent):
            known = values.of_step(state)
            for name, sink in list(self._sinks.items()):
                self._fenced(name, partial(sink.log, event.step, event.time_unix_s, known))

    def tick(self, now_s: float) -> None:
        """In the thread: nothing is due."""

    def close(self) -> None:
        """In the thread: the last word."""
        for name, sink in list(self._sinks.items()):
            if self._record is not None:
                self._fenced(name, partial(sink.close, self._record))

    def _opened(self) -> Feed:
        for name in self._names:
            self._fenced(name, partial(self._open, name))
        return self

    def _open(self, name: str) -> None:
        self._sinks[name] = open_sink(name, self._run_dir, self._plan)

    def _fenced(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # a package may fail in any way
            self._sinks.pop(name, None)
            complain(self._console, f"sink {name} stopped: {type(error).__name__}: {error}")
