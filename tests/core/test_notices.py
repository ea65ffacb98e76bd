"""Warnings that a reader of the record must see: from plugins, and from code that knows nothing of records."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from core import notices
from core.events import EventLog, read_events
from schemas import event as ev


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[Callable[[], object]], list[str]]:
    """The messages that a function leaves in the event file."""

    def run(function: Callable[[], object]) -> list[str]:
        log = EventLog(tmp_path, 0)
        with warnings.catch_warnings(record=True), notices.recorded(log):
            function()
        log.close()
        return [event.message for event in read_events(tmp_path) if isinstance(event, ev.WarningEvent)]

    return run


def test_a_notice_is_recorded_once(recorded: Callable[..., list[str]]) -> None:
    def twice() -> None:
        for _ in range(2):
            notices.notify("the fused optimizer is missing")
        notices.notify("attention is slow")

    assert recorded(twice) == ["the fused optimizer is missing", "attention is slow"]


def test_a_notice_is_also_shown_like_any_warning(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    with pytest.warns(notices.RecordWarning, match="attention is slow"), notices.recorded(log):
        notices.notify("attention is slow")


def test_filters_that_hide_warnings_do_not_hide_notices(recorded: Callable[..., list[str]]) -> None:
    warnings.simplefilter("ignore")
    assert recorded(lambda: notices.notify("seen")) == ["seen"]


def test_what_was_warned_before_is_recorded_again(recorded: Callable[..., list[str]]) -> None:
    """Python shows a warning once a place; that counts for nothing here."""

    def speak() -> None:
        notices.notify("of every run")

    with pytest.warns(notices.RecordWarning):
        speak()
    assert recorded(speak) == ["of every run"]


def test_other_code_s_warnings_are_taken_up_by_their_text(recorded: Callable[..., list[str]]) -> None:
    def operators() -> None:
        notices.watch(r"will fall back to .* the CPU")
        for name in ("aten::x", "aten::y", "aten::x"):
            warnings.warn(f"The operator '{name}'\nwill FALL back to run on the CPU.", UserWarning, stacklevel=1)
        warnings.warn("something is deprecated", DeprecationWarning, stacklevel=1)

    assert recorded(operators) == [
        "The operator 'aten::x'\nwill FALL back to run on the CPU.",
        "The operator 'aten::y'\nwill FALL back to run on the CPU.",
    ]


def test_afterwards_everything_is_as_before(recorded: Callable[..., list[str]]) -> None:
    filters, show = list(warnings.filters), warnings.showwarning
    recorded(lambda: notices.watch("slow"))
    assert (warnings.filters, warnings.showwarning) == (filters, show)
    assert recorded(lambda: warnings.warn("slow", UserWarning, stacklevel=1)) == []


def test_a_failure_passes_through(tmp_path: Path) -> None:
    log = EventLog(tmp_path, 0)
    with pytest.raises(ValueError, match="mine"), notices.recorded(log):
        raise ValueError("mine")


def test_torch_s_own_warnings_come_through(recorded: Callable[..., list[str]]) -> None:
    torch = pytest.importorskip("torch")

    def native() -> None:
        notices.watch("ComplexHalf support is experimental")
        torch.zeros(1, dtype=torch.complex32)

    messages = recorded(native)
    if not messages:
        pytest.skip("this torch has said so already in this process")
    assert "ComplexHalf support is experimental" in messages[0]
