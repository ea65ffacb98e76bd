"""Progress: a bar where there is a terminal, lines in a log, and nothing that a log could not hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from core import cli, progress
from core.progress import open_view
from schemas import event as ev
from schemas.plan import Plan

AT: dict[str, Any] = {"time_unix_s": 1e9, "elapsed_s": 1.0, "rank": 0}


def step(number: int, total: int | None = 20, **changes: Any) -> ev.StepEvent:
    values = AT | {
        "phase": "measure", "step": number, "total_steps": total, "step_time_s": 2.0, "loss": 3.14159,
        "grad_norm": 1.0, "learning_rate": 1e-5, "label_tokens": 1, "real_tokens": 16384, "padded_tokens": 0,
    }  # fmt: skip
    return ev.StepEvent(**(values | changes))


def phase(name: str, rank: int = 0) -> ev.PhaseEvent:
    return ev.PhaseEvent.model_validate(AT | {"phase": name, "rank": rank})


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(topology="X1x1x8")  # 64 sequences of 2048 tokens a step


def shown(plan: Plan, events: list[ev.Event], *, terminal: bool, **console: Any) -> str:
    file = io.StringIO()
    made = Console(file=file, force_terminal=terminal, width=120, highlight=False, **console)
    view = open_view(plan, made)
    for event in events:
        view.show(event)
    view.close()
    return file.getvalue()


def test_a_log_gets_a_line_a_phase_and_one_every_few_seconds(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([0.0, 1.0, 4.9, 5.0, 5.1, 5.2])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    events = [
        phase("warmup"),
        step(1, None, phase="warmup"),
        step(2),
        phase("measure"),
        step(3),
        step(4),
        step(5),
        step(20),
    ]
    assert shown(plan, events, terminal=False).splitlines() == [
        "toy X1x1x8 base (deepspeed, bf16)",
        "phase warmup",
        "warmup step 1 loss 3.1416 8,192 token/p/s",
        "phase measure",
        "measure step 4/20 loss 3.1416 8,192 token/p/s",
        "measure step 20/20 loss 3.1416 8,192 token/p/s",  # the last one always
    ]


def test_other_ranks_are_not_shown(plan: Plan) -> None:
    assert shown(plan, [phase("setup", rank=1), step(1, rank=1)], terminal=False).count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "text"), [({"loss": None}, "loss not finite"), ({"step_time_s": None}, "- token/p/s")]
)
def test_what_is_unknown_is_said(plan: Plan, changes: dict[str, Any], text: str) -> None:
    assert text in shown(plan, [step(1, **changes)], terminal=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_is_shown_as_it_is(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """Neither markup nor emoji: ``[/usr]`` would end a style that nobody began, and that is an error."""
    message = "[/usr/lib] said [bold] at :100:"
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")  # which also makes rich take it for a terminal
    view = open_view(plan, cli.new_console(stderr=True))
    assert isinstance(view, progress._Bar) is terminal
    view.show(ev.WarningEvent(**AT, message=message))
    view.close()
    captured = capsys.readouterr()
    assert f"warning: {message}" in captured.err
    assert captured.out == ""


def test_a_terminal_gets_a_bar(plan: Plan) -> None:
    text = shown(plan, [phase("measure"), step(7)], terminal=True)
    assert "toy X1x1x8 base (deepspeed, bf16)" in text
    assert "7/20" in text
    assert "loss 3.1416  8,192 token/p/s" in text
    assert "\x1b[?25l" in text  # the cursor is hidden ...
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # ... and comes back


def test_no_color_is_honoured(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = "\x1b[3"  # foreground colours are 30 to 39
    events: list[ev.Event] = [phase("measure"), step(7)]
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured in shown(plan, events, terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured not in shown(plan, events, terminal=True, color_system="standard")
    assert "\x1b" not in shown(plan, events, terminal=False)
