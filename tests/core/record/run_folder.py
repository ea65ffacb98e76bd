"""A run's folder as its ranks fill it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import events
from core.events import EventLog
from core.outcome import OUTCOME_FILE, Outcome
from core.record import build_record
from core.worker import PLAN_FILE
from schemas import event as ev
from schemas.chip import Device, MemoryReading
from schemas.plan import Plan
from schemas.record import Record

STEP_S = 2.0
WARMUP, MEASURED = 2, 20


class RunFolder:
    """A run's folder, filled by its ranks; time passes only where a test says so."""

    def __init__(self, folder: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir(parents=True)
        (folder / PLAN_FILE).write_text(plan.model_dump_json(), encoding="utf-8")
        self.folder, self.plan, self.now_s = folder, plan, 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now_s, time=lambda: 1e9 + self.now_s)
        monkeypatch.setattr(events, "time", clock)
        self.logs: dict[int, EventLog] = {}

    def emit(self, rank: int, kind: type[Any], **fields: Any) -> None:
        if rank not in self.logs:
            self.logs[rank] = EventLog(self.folder, rank)
        self.logs[rank].emit(kind, **fields)

    def start(self, rank: int) -> None:
        """Up to the model."""
        self.now_s = 0.0
        for phase in ("start", "device", "data", "setup"):
            self.emit(rank, ev.PhaseEvent, phase=phase)
        device = Device(
            torch_device=f"acme:{rank}", index=rank, name="ACME X1", collective_backend="accl",
            math_mode={"tf32": "off"},
        )  # fmt: skip
        self.emit(
            rank, ev.DeviceEvent, device=device, environment={"driver": f"570.{rank}"}, host="h", pid=100 + rank
        )
        self.emit(rank, ev.DataEvent, data="generated", manifest_sha256="ab" * 32, sequences=512, tokens=10**6)
        self.emit(
            rank, ev.ModelEvent, parameters_total=1000, parameters_trainable=900, parameters_embedding=200,
            weights="random", optimizer="acme.FusedAdamW",
        )  # fmt: skip

    def step(self, rank: int, phase: str, step: int, **changes: Any) -> None:
        self.now_s += STEP_S
        values = {
            "step_time_s": STEP_S + step / 100,
            "loss": 5.0 - step / 10,
            "grad_norm": 1.0 + step,
            "learning_rate": 1e-5,
            "label_tokens": 100,
            "real_tokens": 100,
            "padded_tokens": 28,
            "memory_allocated_gib": 40.0,
        }
        self.emit(rank, ev.StepEvent, phase=phase, step=step, total_steps=None, **(values | changes))

    def train(self, rank: int, window_s: float = 40.0) -> None:
        """Warm-up and window; ends in second 44."""
        self.emit(rank, ev.PhaseEvent, phase="warmup")
        for step in range(1, WARMUP + 1):
            self.step(rank, "warmup", step)
        self.emit(rank, ev.PhaseEvent, phase="measure")
        for step in range(WARMUP + 1, WARMUP + MEASURED + 1):
            self.step(rank, "measure", step)
        self.emit(
            rank, ev.WindowEvent, window_s=window_s, steps=MEASURED, real_tokens=100 * MEASURED,
            padded_tokens=28 * MEASURED, epochs=3,
        )  # fmt: skip

    def finish(self, rank: int) -> None:
        memory = MemoryReading(
            peak_allocated_gib=60.0 + rank, peak_reserved_gib=70.0 - rank, peak_device_gib=None, capacity_gib=80.0,
            allocation_retries=rank, oom_count=0,
        )  # fmt: skip
        self.emit(rank, ev.MemoryEvent, memory=memory)
        self.now_s += 1.0
        self.emit(rank, ev.PhaseEvent, phase="finish")
        self.emit(rank, ev.FinishEvent)

    def fail(self, rank: int, status: str, reason: str, step: int | None = None) -> None:
        self.now_s += 1.0
        self.emit(rank, ev.ErrorEvent, status=status, step=step, reason=reason, traceback="...")

    def outcome(self, **values: Any) -> None:
        outcome = Outcome(command="accelmark run toy", **values)
        (self.folder / OUTCOME_FILE).write_text(outcome.model_dump_json(), encoding="utf-8")

    def record(self) -> Record:
        for log in self.logs.values():
            log.close()
        self.logs.clear()
        return build_record(self.folder)


MakeFolder = Callable[..., RunFolder]
