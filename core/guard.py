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
"""What the main thread gets to tell by itself why it ends, a lost connection say; and a time-out to run out, which
says more than the signal that another rank's time-out has brought about."""
_CLOSING_S = 30.0

Close = Callable[[int], None]
"""Called with the exit code, once, when nothing more will be written."""


class Guard:
    """Emits heartbeats; more where this rank's end is more than the end of its process.

    ``alone``: no launcher of ours enforces the plan's time-outs, or ends what is left of the run when the agent is
    gone, so this does. ``orderly``: SIGTERM is answered by
    ``close``, too.
    """

    def __init__(  # noqa: PLR0913 - what it looks after
        self,
        log: EventLog,
        run_dir: Path,
        step: Callable[[], int | None],
        watch: RankWatch,
        close: Close,
        *,
        alone: bool,
        orderly: bool,
    ) -> None:
        self._log, self._run_dir, self._step, self._watch, self._close = log, run_dir, step, watch, close
        self._rank, self._alone, self._parent = log.rank, alone, os.getppid()
        self._closing = threading.Lock()
        self._over = threading.Event()
        self._signals = _terminations() if orderly else None
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
            terminated = self._terminated()
            if terminated and not stacks.has_dump(self._run_dir, self._rank):  # a launcher asks ranks that hang
                self._over.wait(_OWN_WORD_S)
            why = self._watch.overdue(time.monotonic())
            if why and (terminated or self._alone):
                self._end("hang", why)
            elif terminated:
                self._end("interrupted", "ended by SIGTERM")
            elif self._alone and os.getppid() != self._parent:
                self._end("crashed", "the process that started it (torchrun's agent, srun's) is gone")
            if time.monotonic() - beaten >= HEARTBEAT_S:
                beaten = time.monotonic()
                with contextlib.suppress(OSError):
                    self._log.emit(ev.HeartbeatEvent, step=self._step())

    def _terminated(self) -> bool:
        if self._signals is None:
            return self._over.wait(_POLL_S)
        readable, _, _ = select.select([self._signals], [], [], _POLL_S)
        return bool(readable and self._signals.recv(64))

    def _end(self, status: ev.Status, reason: str) -> None:
        if self._over.is_set() or not self._closing.acquire(blocking=False):
            return
        threading.Timer(_CLOSING_S, os._exit, [1]).start()
        with contextlib.suppress(OSError):
            self._log.emit(
                ev.ErrorEvent, status=status, step=self._step(), reason=reason, traceback="", place=self._place()
            )
        self._close(1)
        os._exit(1)

    def _place(self) -> str | None:
        """Where the main thread is, from its stack, which stays in the run folder; None where that is full."""
        with contextlib.suppress(OSError):
            return stacks.place_now(self._run_dir, self._rank)
        return None


def _terminations() -> socket.socket:
    """A socket that becomes readable on SIGTERM, whatever the main thread is doing."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return receiver
