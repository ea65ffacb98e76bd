"""Events handed to a thread of their own, so that whoever shows or keeps them takes no time from the rest."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from schemas import event as ev

_TICK_S = 1.0


class Listener(Protocol):
    """What takes events; ``now_s`` is any monotonic clock."""

    def show(self, event: ev.Event, now_s: float) -> None:
        """Take one event into account."""

    def tick(self, now_s: float) -> None:
        """Time has passed."""

    def close(self) -> None:
        """No event follows."""


class Relay:
    """The thread, which opens its listener when the first event comes; it does not keep the process alive."""

    def __init__(self, open_listener: Callable[[], Listener]) -> None:
        self._open = open_listener
        self._waiting: queue.SimpleQueue[ev.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, event: ev.Event) -> None:
        """Hand over one event; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="accelmark-relay", daemon=True)
            self._thread.start()
        self._waiting.put(event)

    def close(self, within_s: float) -> bool:
        """Let the listener take what is left and close; False if that took too long, and goes on."""
        if self._thread is None:
            return True
        self._waiting.put(None)
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        listener = self._open()
        while True:
            try:
                event = self._waiting.get(timeout=_TICK_S)
            except queue.Empty:
                listener.tick(time.monotonic())
                continue
            if event is None:
                listener.close()
                return
            listener.show(event, time.monotonic())
