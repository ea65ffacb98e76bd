"""What a reader of the record must know, handed over as a Python warning from wherever it turns up in a worker.

A plugin (or core) warns with :class:`RecordWarning`. What other code warns of, also native code through torch, is
taken up by its text: the plugin names a pattern with :func:`watch`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.events import EventLog

_watched: list[re.Pattern[str]] = []


class RecordWarning(UserWarning):
    """A warning that belongs into the record."""


def notify(message: str) -> None:
    """Put ``message`` among the record's warnings; each text once a rank."""
    warnings.warn(message, RecordWarning, stacklevel=2)


def watch(pattern: str) -> None:
    """Take every Python warning whose text holds ``pattern`` (a regular expression) into the record, too."""
    warnings.filterwarnings("always", message=f"(?s:.*){pattern}")  # a filter matches from the text's beginning
    _watched.append(re.compile(pattern, re.IGNORECASE))


@contextmanager
def recorded(log: EventLog) -> Iterator[None]:
    """Emit such warnings to ``log``, besides showing them as usual.

    Filters and patterns are put back at the end. What is warned of inside ``catch_warnings(record=True)`` never
    gets here, nor what native code says in a thread that Python did not start.
    """
    from schemas import event as ev  # what plugins import must not keep `list` waiting

    seen: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_and_emit(message: Warning | str, category: type[Warning], *where: Any) -> None:
            show(message, category, *where)
            text = str(message)
            if text not in seen and _belongs(text, category):
                seen.add(text)
                log.emit(ev.WarningEvent, message=text)

        warnings.showwarning = show_and_emit  # type: ignore[assignment]  # it is called by position
        warnings.filterwarnings("always", category=RecordWarning)
        try:
            yield
        finally:
            _watched.clear()


def _belongs(text: str, category: type[Warning]) -> bool:
    return issubclass(category, RecordWarning) or any(pattern.search(text) for pattern in _watched)
