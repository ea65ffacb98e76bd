"""The event log: written by every rank to a file of its own, followed by the launcher, read for the record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from core.errors import UsageError
from schemas import event as ev
from schemas.base import explain

FOLDER = "events"
EventListener = Callable[[ev.Event], None]
Kind = TypeVar("Kind", bound=ev.Event)


def event_file(run_dir: Path, rank: int) -> Path:
    """Where ``rank`` writes its events."""
    return run_dir / FOLDER / f"rank{rank:05d}.jsonl"


class EventLog:
    """Appends this rank's events, one JSON line each, flushed at once; safe to call from several threads."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        path = event_file(run_dir, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.listeners: list[EventListener] = []
        """Are told every event of this rank, in the thread that emits it."""
        self.rank = rank
        # The wall clock is read once: one that jumps later neither disorders events nor bends durations.
        self._started_unix_s, self._started = time.time(), time.monotonic()
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8")

    def emit(self, kind: type[Any], **fields: Any) -> None:
        """Write one event of class ``kind``."""
        elapsed = time.monotonic() - self._started
        event = kind(time_unix_s=self._started_unix_s + elapsed, elapsed_s=elapsed, rank=self.rank, **fields)
        with self._lock:
            self._file.write(event.model_dump_json() + "\n")
            self._file.flush()
        for listener in self.listeners:
            listener(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EventTail:
    """Follows the event files of a run; every call of ``poll`` yields what was appended since the last."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER
        self._offsets: dict[Path, int] = {}

    def poll(self) -> Iterator[ev.Event]:
        """New whole events, file by file; a line still being written waits for the next poll."""
        for file in sorted(self._folder.glob("rank*.jsonl")):
            with file.open("rb") as handle:
                handle.seek(self._offsets.get(file, 0))
                data = handle.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offsets[file] = self._offsets.get(file, 0) + len(whole)
            for number, line in enumerate(whole.splitlines(), start=1):
                yield _parse(line, f"{file} (line {number} of this read)")


def read_events(run_dir: Path) -> list[ev.Event]:
    """Every whole event of a run, in order of time within each rank."""
    return list(EventTail(run_dir).poll())


def of_kind(events: Iterable[ev.Event], kind: type[Kind]) -> list[Kind]:
    """The events of class ``kind``, in their order."""
    return [event for event in events if isinstance(event, kind)]


def last_of_kind(events: Iterable[ev.Event], kind: type[Kind]) -> Kind | None:
    """The last event of class ``kind``; None where there is none."""
    found = of_kind(events, kind)
    return found[-1] if found else None


def _parse(line: bytes, source: str) -> ev.Event:
    try:
        return ev.EventAdapter.validate_json(line)
    except ValidationError as error:
        raise UsageError(explain(error, source), "the event file was edited or cut; restore it") from error
