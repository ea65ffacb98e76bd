"""A thread of a worker that tells it is alive, and ends it in order when it hangs or is told to end.

The main thread may be inside a collective, where neither Python's signal handlers nor an exception reach it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from core import stacks
from core.events import EventLog
from core.watch import RankWatch
from schemas import event as ev

HEARTBEAT_S = 5.0
_POLL_S = 0.5
_OWN_WORD_S = 2.0
"""What the main thread gets to tell by itself why it ends: a lost connection, say."""
_CLOSING_S = 30.0

Close = Callable[[int], None]
"""Called with the exit code, once, when nothing more will be written."""


class Guard:
    """Emits heartbeats; more where this rank's end is more than the end of its process.

    ``watch`` None: a launcher enforces the plan's time-outs. ``orderly``: SIGTERM is answered by ``close``, too.
    """

    def __init__(  # noqa: PLR0913 - what it looks after
        self,
        log: EventLog,
        run_dir: Path,
        step: Callable[[], int | None],
        watch: RankWatch | None,
        close: Close,
        *,
        orderly: bool,
    ) -> None:
        self._log, self._run_dir, self._step, self._watch, self._close = log, run_dir, step, watch, close
        self._closing = threading.Lock()
        self._over = threading.Event()
        self._signals = _terminations() if orderly else None
        if watch is not None:
            log.listeners.append(lambda event: watch.observe(event, time.monotonic()))
        threading.Thread(target=self._work, name="accelmark-guard", daemon=True).start()

    def main_thread_ended(self, code: int) -> None:
        """The main thread has said its last word: close, unless this thread is about to."""
        self._over.set()
        if not self._closing.acquire(blocking=False):
            time.sleep(_CLOSING_S)
        if self._signals is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._close(code)

    def _work(self) -> None:
        beaten = time.monotonic()
        while not self._over.is_set():
            if self._terminated():
                self._end("interrupted", "ended by SIGTERM")
            now = time.monotonic()
            why = self._watch.overdue(now) if self._watch is not None else None
            if why and self._watch is not None:
                stacks.dump_now(self._run_dir, self._watch.rank)
                text = stacks.stack_file(self._run_dir, self._watch.rank).read_text(encoding="utf-8")
                self._end("hang", f"{stacks.describe(text)}: {why}")
            if now - beaten >= HEARTBEAT_S:
                beaten = now
                with contextlib.suppress(OSError):
                    self._log.emit(ev.HeartbeatEvent, step=self._step())

    def _terminated(self) -> bool:
        if self._signals is None:
            return self._over.wait(_POLL_S)
        readable, _, _ = select.select([self._signals], [], [], _POLL_S)
        return bool(readable and self._signals.recv(64))

    def _end(self, status: ev.Status, reason: str) -> None:
        if self._over.wait(_OWN_WORD_S if status == "interrupted" else 0):
            return
        if not self._closing.acquire(blocking=False):
            return
        threading.Timer(_CLOSING_S, os._exit, [1]).start()
        with contextlib.suppress(OSError):
            self._log.emit(ev.ErrorEvent, status=status, step=self._step(), reason=reason, traceback="")
        self._close(1)
        os._exit(1)


def _terminations() -> socket.socket:
    """A socket that becomes readable on SIGTERM, whatever the main thread is doing."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return receiver
