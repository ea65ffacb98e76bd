"""Stacks of a hanging run's ranks: each dumps its own into the run folder when asked, whatever it is doing."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

FOLDER = "stacks"
_DUMP_WITHIN_S = 2.0
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$')
_OF_OTHERS = re.compile(r"torch/(distributed|autograd)/")
"""Where a rank waits for others: a collective, or the backward pass that overlaps with one."""
_DEVICE = re.compile(r"core/clock\.py$")


def stack_file(run_dir: Path, rank: int) -> Path:
    """Where ``rank`` dumps its stacks."""
    return run_dir / FOLDER / f"rank{rank:05d}.txt"


def dump_on_request(run_dir: Path, rank: int) -> None:
    """From now on SIGUSR1 makes this process dump all its threads, also from within native code."""
    path = stack_file(run_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Kept open by faulthandler; its presence tells the launcher that the signal no longer ends the process.
    faulthandler.register(signal.SIGUSR1, path.open("w", encoding="utf-8"), all_threads=True)


def place_now(run_dir: Path, rank: int) -> str:
    """Where this process is, in words; its stacks are dumped, unless it was asked for them before."""
    path = stack_file(run_dir, rank)
    if not has_dump(run_dir, rank):
        with path.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    return describe(path.read_text(encoding="utf-8", errors="replace"))


def has_dump(run_dir: Path, rank: int) -> bool:
    """Whether ``rank`` has dumped its stacks."""
    path = stack_file(run_dir, rank)
    return path.exists() and path.stat().st_size > 0


def ask_for_dumps(run_dir: Path, pids: Mapping[int, int]) -> dict[int, str]:
    """Let the ranks (rank -> process) dump their stacks; where each one is, in words."""
    asked = []
    for rank, pid in pids.items():
        if stack_file(run_dir, rank).exists() and _runs(pid):
            os.kill(pid, signal.SIGUSR1)
            asked.append(rank)
    deadline = time.monotonic() + _DUMP_WITHIN_S
    while time.monotonic() < deadline and not all(has_dump(run_dir, rank) for rank in asked):
        time.sleep(0.05)
    time.sleep(0.1)  # a dump that has begun is written in one go
    return {rank: _where(run_dir, rank, pid) for rank, pid in pids.items()}


def waits(place: str) -> bool:
    """Whether a rank at ``place`` waits for others, or for its device."""
    return place.startswith("waits")


def culprits(places: Mapping[int, str]) -> list[int]:
    """Ranks that do not wait for others; all of them where every one does."""
    return [rank for rank, place in places.items() if not waits(place)] or list(places)


def describe(text: str) -> str:
    """Where the main thread is, from a dump by faulthandler (which writes the main thread last)."""
    last = re.split(r"\n(?=(?:Current thread|Thread) 0x)", text.strip())[-1]
    frames = [found for line in last.splitlines() if (found := _FRAME.match(line))]
    if not frames:
        return "gave no stack"
    top = _place(frames[0])
    waiting = [frame for frame in frames[:6] if _OF_OTHERS.search(frame["file"])]
    named = [frame["function"] for frame in waiting if not frame["file"].endswith("c10d_logger.py")]
    if named and _OF_OTHERS.search(frames[0]["file"]):
        return f"waits in {named[0]}"
    if any(_DEVICE.search(frame["file"]) for frame in frames[:2]):
        return f"waits for its device in {top}"
    return f"is in {top}"


def _place(frame: re.Match[str]) -> str:
    return f"{frame['function']} ({Path(frame['file']).name}:{frame['line']})"


def _where(run_dir: Path, rank: int, pid: int) -> str:
    try:
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return "is stopped by a signal"
    except psutil.Error:
        return "is gone"
    if not has_dump(run_dir, rank):
        return "gave no stack"
    return describe(stack_file(run_dir, rank).read_text(encoding="utf-8", errors="replace"))


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def ranks_of(processes: Iterable[psutil.Process]) -> dict[int, int]:
    """Rank -> process, of those that a launcher has told their rank."""
    found: dict[int, int] = {}
    for process in processes:
        try:
            environ = process.environ()
        except psutil.Error:
            continue
        if "LOCAL_RANK" in environ and "RANK" in environ:
            found.setdefault(
                int(environ["RANK"]), process.pid
            )  # parents come first: a rank's children know it, too
    return found
