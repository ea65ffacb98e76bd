"""Progress for people, from the events: a bar on a terminal, plain lines in a log. Always on stderr."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from core.summary import tokens_per_second_per_chip
from schemas import event as ev
from schemas.plan import Plan

LINE_EVERY_S = 5.0


class View(Protocol):
    """What the launcher shows events to."""

    def show(self, event: ev.Event) -> None:
        """Take one event into account."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_view(plan: Plan, console: Console) -> View:
    """The view that suits ``console``."""
    return _Bar(plan, console) if console.is_terminal else _Lines(plan, console)


def _rate(plan: Plan, step: ev.StepEvent) -> str:
    """Tokens per second and chip of one step."""
    if not step.step_time_s:
        return "-"
    tokens = tokens_per_second_per_chip(plan, {step.rank: step.real_tokens}, step.step_time_s)
    return f"{tokens:,.0f}"


def _loss(step: ev.StepEvent) -> str:
    return "not finite" if step.loss is None else f"{step.loss:.4f}"


def title(plan: Plan) -> str:
    """Case, hardware config, run and engine in one line."""
    return f"{plan.case} {plan.topology} {plan.run} ({plan.engine}, {plan.hyper_parameters.precision})"


class _Bar:
    """A progress bar over the steps of rank 0."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan = plan
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console)
        console.print(title(plan))
        self._task: TaskID = self._progress.add_task("start", total=None, status="")
        self._progress.start()

    def show(self, event: ev.Event) -> None:
        if event.rank != 0:
            return
        if isinstance(event, ev.PhaseEvent):
            self._progress.update(self._task, description=event.phase)
        elif isinstance(event, ev.StepEvent):
            status = f"loss {_loss(event)}  {_rate(self._plan, event)} token/p/s"
            self._progress.update(self._task, completed=event.step, total=event.total_steps, status=status)
        elif isinstance(event, ev.WarningEvent):
            self._progress.console.print(f"warning: {event.message}")

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """One line a phase, and one every few seconds of training."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._last = float("-inf")
        self._print(title(plan))

    def show(self, event: ev.Event) -> None:
        if event.rank != 0:
            return
        if isinstance(event, ev.PhaseEvent):
            self._print(f"phase {event.phase}")
        elif isinstance(event, ev.WarningEvent):
            self._print(f"warning: {event.message}")
        elif isinstance(event, ev.StepEvent) and self._is_due(event):
            total = f"/{event.total_steps}" if event.total_steps else ""
            rate = _rate(self._plan, event)
            self._print(f"{event.phase} step {event.step}{total} loss {_loss(event)} {rate} token/p/s")

    def close(self) -> None:
        pass

    def _is_due(self, step: ev.StepEvent) -> bool:
        now = time.monotonic()
        if now - self._last < LINE_EVERY_S and step.step != step.total_steps:
            return False
        self._last = now
        return True

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
