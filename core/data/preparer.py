"""A process that prepares batches, for sources that take much Python to make one.

Python runs one thread of a process at a time, and takes 5 ms to make it give way: beside a thread that decodes
images, the one that queues the device's work stands still again and again.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from core.data.source import MicroBatch
from core.errors import RunError
from core.process import die_with_parent_in_child

_JOIN_S = 5.0
_SIZE_BYTES = 8

Read = Callable[[int], list[MicroBatch]]
"""The micro-batches of a step (from 0)."""


@dataclass(frozen=True)
class _Step:
    """What is sent of one step."""

    micro_batches: list[MicroBatch]
    warned: list[tuple[str, type[Warning], str, int]]
    """Text, category, file and line of what was warned of meanwhile."""
    error: Exception | None = None
    """What ``read`` raised, and where:"""
    trace: str = ""


class Preparer:
    """Calls ``read`` for one step after the other, without end, in a process of its own.

    That process is a fork, so that it has the data without reading it again, and works one step ahead. It ends
    with this one, or by ``close``; signals to end are for this process to answer.
    """

    def __init__(self, read: Read, start_step: int) -> None:
        """Fork; call it in a thread that stays, for the process ends with it."""
        context = multiprocessing.get_context("fork")
        self._results, sending = socket.socketpair()
        self._process = context.Process(
            target=_work,
            args=(read, start_step, os.getpid(), self._results, sending),
            name="accelmark-data",
            daemon=True,
        )
        self._shown: dict[str | tuple[str, type[Warning], int], int] = {}
        self._process.start()
        sending.close()
        atexit.register(self.close)  # else multiprocessing would wait for a process that no signal ends

    def next_step(self) -> list[MicroBatch]:
        """The next step; raises what ``read`` raised there, and ``RunError`` where the process is gone."""
        try:
            step = _receive(self._results)
        except (EOFError, OSError):
            raise RunError(
                f"the process that prepares batches is gone{self._how()}",
                "look in the kernel's log (dmesg) for what ended it: memory of the host that ran out, say",
            ) from None
        for warned in step.warned:
            warnings.warn_explicit(*warned, registry=self._shown)
        if step.error is not None:
            raise step.error from RuntimeError(step.trace)
        return step.micro_batches

    def close(self) -> None:
        """End the process; a ``next_step`` that waits fails. May be called twice."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.join(_JOIN_S)
        self._results.close()

    def _how(self) -> str:
        self._process.join(_JOIN_S)
        code = self._process.exitcode
        return "" if code is None else f": {signal.Signals(-code).name}" if code < 0 else f": exit code {code}"


def _work(read: Read, start_step: int, parent: int, results: socket.socket, sending: socket.socket) -> None:
    """All that the process does."""
    die_with_parent_in_child()
    if os.getppid() != parent:
        return
    # Else signals would be told to the parent's guard, too, with which this process shares a socket.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    results.close()
    gc.freeze()  # a collection writes to every object that it looks at, and shared pages would become copies
    with contextlib.suppress(ConnectionError), warnings.catch_warnings(record=True) as caught:
        for wanted in itertools.count(start_step):
            step = _step(read, wanted, caught)
            _send(sending, step)
            if step.error is not None:
                return
            caught.clear()


def _step(read: Read, wanted: int, caught: list[warnings.WarningMessage]) -> _Step:
    error, trace, micro_batches = None, "", []
    try:
        micro_batches = read(wanted)
    except Exception as raised:
        error, trace = _portable(raised), traceback.format_exc()
    warned = [(str(one.message), one.category, one.filename, one.lineno) for one in caught]
    return _Step(micro_batches, warned, error, trace)


def _portable(error: Exception) -> Exception:
    """Some errors of libraries cannot be made again from what they are pickled to: one with their text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _send(sending: socket.socket, step: _Step) -> None:
    """The size of a head, the head, and the arrays as they lie in memory."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(step, protocol=5, buffer_callback=arrays.append)
    parts = [array.raw() for array in arrays]
    head = pickle.dumps((content, [part.nbytes for part in parts]))
    sending.sendall(len(head).to_bytes(_SIZE_BYTES, "little") + head)
    for part in parts:
        sending.sendall(part)


def _receive(results: socket.socket) -> _Step:
    size = int.from_bytes(_bytes(results, _SIZE_BYTES), "little")
    content, sizes = pickle.loads(_bytes(results, size))
    step: _Step = pickle.loads(content, buffers=[_bytes(results, size) for size in sizes])
    return step


def _bytes(results: socket.socket, size: int) -> memoryview:
    """The next ``size`` bytes, in one call that leaves Python to the other threads; ``EOFError`` at the end."""
    content = np.empty(size, dtype=np.uint8).data  # a bytearray would be filled with zeros first
    received = 0
    while received < size:  # a signal may cut a call short
        count = results.recv_into(content[received:], 0, socket.MSG_WAITALL)
        if not count:
            raise EOFError
        received += count
    return content
