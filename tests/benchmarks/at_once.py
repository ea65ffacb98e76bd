"""The same work in several processes at the same time. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from core.errors import AccelMarkError, DeviceError
from core.process import die_with_parent_in_child

T = TypeVar("T")
Meet = Callable[[], object]
"""Returns once every process has called it as often."""


def at_once(work: Callable[[int, Meet], T], times: int) -> list[T]:
    """What ``work(index, meet)`` returns for each index below ``times``, each in a process of its own.

    They share nothing, as contexts of devices have to, so that ``work`` and what it returns must be picklable.
    Raises the AccelMarkError that one of them raises, and DeviceError where one ends in another way; the others,
    who might wait for it, are killed then.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(times)
    found: dict[int, T] = {}
    running: dict[Connection[Any, Any], tuple[int, BaseProcess]] = {}
    processes: list[BaseProcess] = []
    try:
        for index in range(times):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, index, barrier, sending, os.getpid()))
            process.start()
            sending.close()  # so that the process alone holds it, and its end is this pipe's end
            processes.append(process)
            running[receiving] = (index, process)
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                index, process = running.pop(ready)
                found[index] = _received(ready, index, process)
    finally:
        for process in processes:
            process.kill()  # done or not: native threads have been seen to abort an interpreter that shuts down
            process.join()
    return [found[index] for index in range(times)]


def _received(receiving: Connection[Any, Any], index: int, process: BaseProcess) -> Any:
    try:
        result = receiving.recv()
    except (EOFError, OSError):
        process.join()
        raise DeviceError(
            f"process {index} ended before its work was done: {_how(process.exitcode)}",
            "see what it wrote above; where it was killed, the kernel's log (dmesg) may say why",
        ) from None
    if isinstance(result, AccelMarkError):
        raise result
    return result


def _how(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _work(
    work: Callable[[int, Meet], object], index: int, barrier: Barrier, sending: Connection[Any, Any], parent: int
) -> None:
    """All that a process does."""
    die_with_parent_in_child()
    if os.getppid() != parent:
        return
    try:
        result = work(index, barrier.wait)
    except AccelMarkError as error:
        result = error
    sending.send(result)
