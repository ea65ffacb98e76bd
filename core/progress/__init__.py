"""Progress for people, from the events of all ranks: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console

from core.progress.lines import Lines
from core.progress.panel import Panel
from core.relay import Listener
from schemas import event as ev
from schemas.plan import Plan


class View(Listener, Protocol):
    """What a run is shown on, always on stderr; closing leaves the terminal as it was."""

    def say(self, text: str) -> None:
        """Print one line."""


def open_view(plan: Plan, ranks: range, console: Console, now_s: float) -> View:
    """The view of ``ranks``, those whose events are followed here, that suits ``console``.

    ``FORCE_COLOR`` lets rich take a log for a terminal: colours it may hold, but a view that is redrawn it cannot.
    """
    redrawn = console.is_interactive and console.file.isatty()
    return Unseen(lambda: (Panel if redrawn else Lines)(plan, ranks, console, now_s), console)


class Unseen:
    """Shows a run for as long as somebody can look: a terminal or pipe that goes away does not end the run."""

    def __init__(self, open_view: Callable[[], View], console: Console) -> None:
        self._console = console
        self._view: View | None = None
        with self._watched():
            self._view = open_view()

    def show(self, event: ev.Event, now_s: float) -> None:
        """Take one event into account."""
        if self._view is not None:
            with self._watched():
                self._view.show(event, now_s)

    def tick(self, now_s: float) -> None:
        """Time has passed."""
        if self._view is not None:
            with self._watched():
                self._view.tick(now_s)

    def say(self, text: str) -> None:
        """Print one line."""
        if self._view is not None:
            with self._watched():
                self._view.say(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._view is not None:
            with self._watched():
                self._view.close()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._view = None
            self._console.quiet = True
