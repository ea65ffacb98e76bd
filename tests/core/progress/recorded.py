"""Events as ranks write them, with the second in which they were read, for views to be driven by."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from rich.console import Console

from core.progress import View, open_view
from schemas import event as ev
from schemas.plan import Plan

AT: dict[str, Any] = {"time_unix_s": 1e9, "elapsed_s": 1.0}
Timed: TypeAlias = tuple[float, ev.Event]
TOTAL = 22


def phase(name: str, rank: int = 0) -> ev.PhaseEvent:
    return ev.PhaseEvent.model_validate(AT | {"phase": name, "rank": rank})


def step(number: int, total: int | None = TOTAL, rank: int = 0, **changes: Any) -> ev.StepEvent:
    values = AT | {
        "rank": rank, "phase": "measure", "step": number, "total_steps": total, "step_time_s": 2.0,
        "loss": 3.14159, "grad_norm": 1.0, "learning_rate": 1e-5, "label_tokens": 1, "real_tokens": 16384,
        "padded_tokens": 0,
    }  # fmt: skip
    return ev.StepEvent(**(values | changes))


def model() -> ev.ModelEvent:
    return ev.ModelEvent(
        **AT, rank=0, parameters_total=7_000_000_000, parameters_trainable=7_000_000_000,
        parameters_embedding=1000, weights="random", optimizer="acme.FusedAdamW",
    )  # fmt: skip


def sample(rank: int, **reading: Any) -> ev.TelemetryEvent:
    return ev.TelemetryEvent.model_validate(AT | {"rank": rank, "reading": reading})


def progress(rank: int, done: int, total: int) -> ev.ProgressEvent:
    return ev.ProgressEvent(**AT, rank=rank, done=done, total=total)


def warning(message: str) -> ev.WarningEvent:
    return ev.WarningEvent(**AT, rank=0, message=message)


def error(rank: int, status: str = "oom") -> ev.ErrorEvent:
    return ev.ErrorEvent.model_validate(
        AT | {"rank": rank, "status": status, "step": 3, "reason": "r", "traceback": "t"}
    )


def run(ranks: int, until: int = 12, late: Iterable[int] = ()) -> list[Timed]:
    """A run up to step ``until``, at second 2 * until + 10; ranks that are ``late`` never end their set-up."""
    events: list[Timed] = [
        (0.0, phase(name, rank)) for name in ("start", "data", "setup") for rank in range(ranks)
    ]
    events.append((8.0, model()))
    going = [rank for rank in range(ranks) if rank not in set(late)]
    for rank in going:
        events.append((10.0, phase("warmup", rank)))
        events += [(12.0, step(1, None, rank, phase="warmup")), (14.0, step(2, None, rank, phase="warmup"))]
        speed = ev.SpeedEvent(**AT, rank=rank, product_s=2e-5 if rank == 5 else 1e-5)
        events += [(14.0, speed), (14.0, phase("measure", rank))]
        for number in range(3, until + 1):
            wait_s = 0.5 if rank == 2 else 0.01
            events.append(
                (2.0 * number + 10, step(number, rank=rank, memory_allocated_gib=40.0, data_wait_s=wait_s))
            )
        reading = {"power_w": 600.0 + rank, "temperature_c": 60.0 + rank, "memory_used_gib": 66.0 + rank / 10}
        events.append((2.0 * until + 10, sample(rank, **reading)))
    return sorted(events, key=lambda timed: timed[0])


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def drive(view: View, events: Iterable[Timed], until_s: float | None = None) -> None:
    """Show the events at their times, and let time pass ``until_s``."""
    now_s = 0.0
    for now_s, event in events:
        view.show(event, now_s)
        view.tick(now_s)
    view.tick(now_s if until_s is None else until_s)
    view.close()


def in_a_log(plan: Plan, events: Iterable[Timed], until_s: float | None = None, **console: Any) -> list[str]:
    """What a log gets."""
    file = io.StringIO()
    ranks = range(plan.topology.world_size)
    view = open_view(plan, ranks, Console(file=file, width=160, highlight=False, **console), 0.0)
    drive(view, events, until_s)
    return file.getvalue().splitlines()


def on_a_terminal(
    plan: Plan, events: Iterable[Timed], until_s: float | None = None, width: int = 120, **console: Any
) -> str:
    """All that a terminal gets, control sequences included."""
    file = Terminal()
    made = Console(file=file, force_terminal=True, width=width, height=30, **({"color_system": None} | console))
    drive(open_view(plan, range(plan.topology.world_size), made, 0.0), events, until_s)
    return file.getvalue()


def last_frame(plan: Plan, text: str) -> list[str]:
    """The lines that stay on the terminal."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    return [line.rstrip() for line in plain[plain.rindex(f"{plan.case} {plan.topology}") :].splitlines()]
