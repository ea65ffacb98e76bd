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
from types import FrameType

from core import stacks
from core.events import EventLog
from core.watch import RankWatch
from schemas import event as ev

HEARTBEAT_S = 5.0
_POLL_S = 0.5
_OWN_WORD_S = 2.0
"""What the main thread gets to tell by itself why it ends, a lost connection say; and a time-out to run out, which
says more than the signal that another rank's time-out has brought about."""
_OTHERS_WORD_S = 2.0
"""What the other ranks get to find the same hang and leave their stacks, before this one's end cuts them off."""
_CLOSING_S = 30.0
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""What an agent passes on to its workers when it is told to end, or its terminal was closed."""

Close = Callable[[int], None]
"""Called with the exit code, once, when nothing more will be written."""


class Guard:
    """Emits heartbeats; more where this rank's end is more than the end of its process.

    ``alone``: no launcher of ours enforces the plan's time-outs, or ends what is left of the run when the agent is
    gone, so this does. ``orderly``: a signal to end is answered by ``close``, too, and so is ``failed_elsewhere``,
    which tells whether another rank has failed.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it looks after
        self,
        log: EventLog,
        run_dir: Path,
        step: Callable[[], int | None],
        watch: RankWatch,
        close: Close,
        failed_elsewhere: Callable[[], bool],
        *,
        alone: bool,
        orderly: bool,
    ) -> None:
        self._log, self._run_dir, self._step, self._watch, self._close = log, run_dir, step, watch, close
        self._rank, self._alone, self._parent = log.rank, alone, os.getppid()
        self._closing = threading.Lock()
        self._over = threading.Event()
        self._elsewhere = threading.Event()
        self._signals = _terminations() if orderly else None
        log.listeners.append(lambda event: watch.observe(event, time.monotonic()))
        threading.Thread(target=self._work, name="accelmark-guard", daemon=True).start()
        if orderly:
            threading.Thread(target=self._ask_elsewhere, args=(failed_elsewhere,), daemon=True).start()

    def main_thread_ended(self, code: int) -> None:
        """The main thread has said its last word: close, unless this thread is about to."""
        self._over.set()
        if not self._closing.acquire(blocking=False):
            time.sleep(_CLOSING_S)
        if self._signals is None:
            self._close(code)
            return
        before = {number: signal.signal(number, _do_nothing) for number in _ENDING}
        self._close(code)
        for number, handler in before.items():  # another run may follow in this process
            signal.signal(number, handler)

    def _work(self) -> None:
        beaten = time.monotonic()
        while not self._over.is_set():
            asked = self._asked_to_end()
            if asked and not stacks.has_dump(self._run_dir, self._rank):  # a launcher asks ranks that hang
                self._over.wait(_OWN_WORD_S)
            why = self._watch.overdue(time.monotonic())
            if why and (asked or self._alone):
                self._end("hang", why)
            elif asked:
                self._end("interrupted", f"ended by {asked}")
            elif self._alone and os.getppid() != self._parent:
                self._end("crashed", "the process that started it (torchrun's agent, srun's) is gone")
            elif self._elsewhere.is_set():
                self._over.wait(_OWN_WORD_S)
                self._end("interrupted", "ended, for another rank has failed")
            if time.monotonic() - beaten >= HEARTBEAT_S:
                beaten = time.monotonic()
                with contextlib.suppress(OSError):
                    self._log.emit(ev.HeartbeatEvent, step=self._step())

    def _ask_elsewhere(self, failed: Callable[[], bool]) -> None:
        """In a thread of its own: where a node is lost, an answer may not come."""
        while not self._over.wait(HEARTBEAT_S):
            if failed():
                self._elsewhere.set()
                return

    def _asked_to_end(self) -> str | None:
        """The signal that has come while waiting a moment, if one has."""
        if self._signals is None:
            self._over.wait(_POLL_S)
            return None
        readable, _, _ = select.select([self._signals], [], [], _POLL_S)
        came = self._signals.recv(64) if readable else b""
        return next((signal.Signals(number).name for number in came if number in _ENDING), None)

    def _end(self, status: ev.Status, reason: str) -> None:
        if self._over.is_set() or not self._closing.acquire(blocking=False):
            return
        threading.Timer(_CLOSING_S, os._exit, [1]).start()
        with contextlib.suppress(OSError):
            self._log.emit(
                ev.ErrorEvent, status=status, step=self._step(), reason=reason, traceback="", place=self._place()
            )
        if status == "hang" and self._alone:
            time.sleep(_OTHERS_WORD_S)
        self._close(1)
        os._exit(1)

    def _place(self) -> str | None:
        """Where the main thread is, from its stack, which stays in the run folder; None where that is full."""
        with contextlib.suppress(OSError):
            return stacks.place_now(self._run_dir, self._rank)
        return None


def _terminations() -> socket.socket:
    """A socket that tells of signals, whatever the main thread is doing."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGINT has Python's own handler, which may be the quicker
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _do_nothing)
    return receiver


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Unlike an ignored signal, one that is handled by this is told by the socket."""
