"""The event log: written by every rank to a file of its own, followed by the launcher, read for the record."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.errors import UsageError
from schemas import event as ev
from schemas.base import explain

FOLDER = "events"


class EventLog:
    """Appends this rank's events, one JSON line each, flushed at once; safe to call from several threads."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        folder = run_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._rank = rank
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._file = (folder / f"rank{rank:05d}.jsonl").open("a", encoding="utf-8")

    def emit(self, kind: type[Any], **fields: Any) -> None:
        """Write one event of class ``kind``."""
        elapsed = time.monotonic() - self._started
        event = kind(time_unix_s=time.time(), elapsed_s=elapsed, rank=self._rank, **fields)
        with self._lock:
            self._file.write(event.model_dump_json() + "\n")
            self._file.flush()

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


def _parse(line: bytes, source: str) -> ev.Event:
    try:
        return ev.EventAdapter.validate_json(line)
    except ValidationError as error:
        raise UsageError(explain(error, source), "the event file was edited or cut; restore it") from error
