"""Progress for people, from the events of all ranks: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console

from core.progress.lines import Lines
from core.progress.panel import Panel
from core.relay import Listener
from schemas.plan import Plan


class View(Listener, Protocol):
    """What a run is shown on, always on stderr; closing leaves the terminal as it was."""

    def say(self, text: str) -> None:
        """Print one line."""


def complain(console: Console, text: str) -> None:
    """Print an error, on a console that is quiet, too."""
    quiet, console.quiet = console.quiet, False
    console.print(text, soft_wrap=True)
    console.quiet = quiet


def open_view(plan: Plan, ranks: range, console: Console, now_s: float) -> View:
    """The view of ``ranks``, those whose events are followed here, that suits ``console``.

    ``FORCE_COLOR`` lets rich take a log for a terminal: colours it may hold, but a view that is redrawn it cannot.
    """
    if console.is_interactive and console.file.isatty():
        return Panel(plan, ranks, console, now_s)
    return Lines(plan, ranks, console, now_s)
