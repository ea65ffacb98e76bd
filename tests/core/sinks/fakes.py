"""Sinks that keep what they are told, or fail."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from schemas.plan import Plan
from schemas.record import Record

NAMES = ("Fake", "FailsToOpen", "FailsToLog", "FailsToClose", "Stuck")
MAY_GO_ON = threading.Event()


class Fake:
    def __init__(self, folder: Path, run: str, plan: Plan) -> None:
        assert folder.is_dir()
        self.folder, self.run, self.plan = folder, run, plan
        self.steps: dict[int, Mapping[str, float]] = {}
        self.times_s: list[float] = []
        self.record: Record | None = None
        OPENED[type(self).__name__] = self

    def log(self, step: int, time_unix_s: float, values: Mapping[str, float]) -> None:
        self.times_s.append(time_unix_s)
        self.steps[step] = values

    def close(self, record: Record) -> None:
        self.record = record


OPENED: dict[str, Fake] = {}


class FailsToOpen(Fake):
    def __init__(self, *_: object) -> None:
        raise PermissionError("no entry")


class FailsToLog(Fake):
    def log(self, step: int, time_unix_s: float, values: Mapping[str, float]) -> None:
        super().log(step, time_unix_s, values)
        if step == 2:
            raise OSError("no space left")


class FailsToClose(Fake):
    def close(self, record: Record) -> None:
        raise ValueError("not like this")


class Stuck(Fake):
    def log(self, step: int, time_unix_s: float, values: Mapping[str, float]) -> None:
        MAY_GO_ON.wait(20)
