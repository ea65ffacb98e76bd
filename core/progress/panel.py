"""Progress on a terminal: one view for all ranks, redrawn in its place, that fits the width it finds."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from core.progress import facts
from core.progress.state import RunState
from schemas import event as ev
from schemas.plan import Plan

REDRAW_EVERY_S = 0.5
"""Often enough to be read, and too seldom to take time from workers that share the processor."""
NARROW = 60
COLUMN = 40
"""Characters that a column of figures needs."""


class Panel:
    """A view that is redrawn; warnings scroll past above it."""

    def __init__(self, plan: Plan, ranks: range, console: Console, now_s: float) -> None:
        self._state, self._now_s, self._drawn_s = RunState(plan, ranks, now_s), now_s, now_s
        # No thread of its own: it is redrawn when the launcher looks for events, between changes of the state.
        self._live = Live(self, console=console, auto_refresh=False, redirect_stdout=False)
        self._live.start(refresh=True)

    def show(self, event: ev.Event, now_s: float) -> None:
        """Take one event into account."""
        self._state.observe(event, now_s)
        if line := facts.line(event):
            self.say(line)

    def tick(self, now_s: float) -> None:
        """Redraw, if it is time."""
        self._now_s = now_s
        if now_s - self._drawn_s >= REDRAW_EVERY_S:
            self._drawn_s = now_s
            self._live.refresh()

    def say(self, text: str) -> None:
        """Print one line above the view."""
        self._live.console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state on the terminal, and the cursor visible."""
        self._live.refresh()
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Title, progress, figures, and where the ranks are."""
        state, width = self._state, options.max_width
        yield Text(facts.title(state.plan), style="bold", overflow="fold")
        yield _progress(state, self._now_s, narrow=width < NARROW)
        yield _figures(_known(state), columns=max(1, min(3, width // COLUMN)))
        yield _ranks(state, self._now_s)


def _progress(state: RunState, now_s: float, *, narrow: bool) -> RenderableType:
    """Phase, bar and times; a narrow terminal has the bar on a line of its own."""
    left = state.left_s
    where = facts.done(state) or f"for {facts.clock(now_s - state.stage_since_s)}"
    phase = Text(f"{state.stage} {where}", style="cyan")
    times = Text(
        facts.clock(now_s - state.started_s) + (f", {facts.clock(left)} left" if left is not None else "")
    )
    count, total = state.done
    bar = ProgressBar(total=total or 1, completed=count)
    first = _row(phase, times, wide=0) if narrow else _row(phase, bar, times, wide=1)
    return Group(first, _row(bar, wide=0)) if narrow else first


def _row(*cells: RenderableType, wide: int) -> Table:
    """Cells side by side; number ``wide`` takes the room that is left."""
    table = Table.grid(*(Column(ratio=1 if place == wide else None, no_wrap=True) for place in range(len(cells))))
    table.expand, table.padding = True, (0, 2, 0, 0)
    table.add_row(*cells)
    return table


def _known(state: RunState) -> list[tuple[str, str]]:
    figures = (
        ("loss", facts.loss(state)),
        ("token/p/s", facts.rate(state)),
        ("MFU", facts.mfu(state)),
        ("step", facts.step_time(state)),
        ("memory", facts.memory(state)),
        ("power", facts.power(state)),
    )
    return [(name, text or "-") for name, text in figures]


def _figures(figures: Sequence[tuple[str, str]], columns: int) -> Table:
    """Name and value, side by side as far as there is room, in reading order."""
    table = Table.grid(expand=True, padding=(0, 2, 0, 0))
    for _ in range(columns):
        table.add_column(width=10, style="dim", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True)
    for first in range(0, len(figures), columns):
        table.add_row(*(text for figure in figures[first : first + columns] for text in figure))
    return table


def _ranks(state: RunState, now_s: float) -> Table:
    """Where the ranks are, and which of them keeps the others waiting."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=10, style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    failed = any(rank.failed for rank in state.ranks.values())
    table.add_row("ranks", Text(facts.stages(state), style="red" if failed else ""))
    slowest, stalled = facts.slowest(state), facts.stalled(state, now_s)
    if slowest:
        table.add_row("slowest", slowest)
    if stalled:
        table.add_row("stalled", Text(stalled, style="yellow"))
    return table
