"""Events handed to a thread: in order, from the first one on, and without waiting for it for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from core import relay
from core.relay import Relay
from schemas import event as ev
from tests.core.progress.recorded import phase


class Listening:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.ticked = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def show(self, event: ev.Event, now_s: float) -> None:
        self.may_go_on.wait(10)
        assert isinstance(event, ev.PhaseEvent)
        assert now_s > 0
        self.told.append(f"{event.phase} in {threading.current_thread().name}")

    def tick(self, now_s: float) -> None:
        self.ticked.set()

    def close(self) -> None:
        self.told.append("closed")


def test_events_arrive_in_order_in_a_thread_of_their_own() -> None:
    listening = Listening()
    through = Relay(lambda: listening)
    for name in ("start", "data"):
        through.put(phase(name))
    assert through.close(10)
    assert listening.told == ["start in accelmark-relay", "data in accelmark-relay", "closed"]


def test_without_events_nothing_is_opened() -> None:
    opened: list[Callable[[], None]] = []
    assert Relay(lambda: opened.append(lambda: None) or Listening()).close(1)  # type: ignore[func-returns-value]
    assert opened == []


def test_one_that_does_not_end_is_not_waited_for() -> None:
    listening = Listening()
    listening.may_go_on.clear()
    through = Relay(lambda: listening)
    through.put(phase("start"))
    assert not through.close(0.05)
    listening.may_go_on.set()
    assert through.close(10)


def test_time_passes_without_events_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_TICK_S", 0.01)
    listening = Listening()
    through = Relay(lambda: listening)
    through.put(phase("start"))
    assert listening.ticked.wait(10)
    assert through.close(10)
