"""Samples the vendor's telemetry in the background of a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable

from core.events import EventLog
from schemas import event as ev
from schemas.chip import TelemetryReading

SAMPLE_EVERY_S = 1.0


class TelemetrySampler:
    """A thread that emits one event a second until it is stopped, or until the vendor has nothing to tell."""

    def __init__(self, read: Callable[[], TelemetryReading | None], log: EventLog) -> None:
        self._read, self._log = read, log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="accelmark-telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            try:
                reading = self._read()
            except Exception as error:  # a vendor's tool may fail in any way; the run goes on without it
                self._log.emit(ev.WarningEvent, message=f"telemetry stopped: {type(error).__name__}: {error}")
                return
            if reading is None:
                return
            self._log.emit(ev.TelemetryEvent, reading=reading)
