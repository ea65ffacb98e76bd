"""The console of all commands: texts as they are, and a reader that goes away is an error like any other."""

from __future__ import annotations

import contextlib
from typing import NoReturn

from rich.console import Console
from rich.table import Column, Table


class PlainConsole(Console):
    """Neither markup, emoji nor highlighting: a reason may hold ``[/path]`` or ``:100:``."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> NoReturn:
        """Raise BrokenPipeError, where rich would close stdout (also for a console of stderr) and exit."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error


def table_of(*names: str, whole: int = 0, title: str | None = None) -> Table:
    """A table of columns ``names`` of which a narrow terminal cuts nothing off: it breaks lines.

    In the first ``whole`` columns not even lines are broken, so that names can be copied.
    """
    columns = (Column(name, overflow="fold", no_wrap=place < whole) for place, name in enumerate(names))
    return Table(*columns, title=title)


def complain(console: Console, text: str) -> None:
    """Print an error, on a console that is quiet, too; where nobody can read it, the exit code has to do."""
    quiet, console.quiet = console.quiet, False
    with contextlib.suppress(OSError):
        console.print(text, soft_wrap=True)
    console.quiet = quiet
