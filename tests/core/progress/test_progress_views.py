"""Progress as it is read: in a log, on terminals of several widths, without colour, and not at all."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from core import cli
from core.console import complain
from core.progress import open_view
from core.progress.lines import Lines
from core.progress.panel import Panel
from schemas import event as ev
from schemas.plan import Plan
from tests.core.progress import recorded
from tests.core.progress.recorded import (
    AT,
    Terminal,
    in_a_log,
    last_frame,
    on_a_terminal,
    phase,
    progress,
    step,
    warning,
)

PlanOf = Callable[[int], Plan]


def test_a_log_gets_a_line_a_phase_and_one_every_few_seconds(plan_of: PlanOf) -> None:
    seconds = (0.0, 1.0, 4.9, 5.0, 6.1, 7.0, 8.0)
    steps = (step(1, None, phase="warmup"), phase("measure"), step(3), step(4), step(5), step(6), step(22))
    events = [(0.0, phase("warmup")), *zip(seconds, steps, strict=True)]
    assert in_a_log(plan_of(1), events) == [
        "toy X1x1x1 base (deepspeed, bf16)",
        "phase warmup",
        "warmup step 1/2, loss 3.1416, 8,192 token/p/s",
        "phase measure",
        "measure step 4/22, loss 3.1416, 8,192 token/p/s, 0:36 left",
        "measure step 22/22, loss 3.1416, 8,192 token/p/s",  # the last one always
    ]


def test_a_line_holds_all_that_is_known(plan_of: PlanOf) -> None:
    assert in_a_log(plan_of(8), [*recorded.run(8), *((38.0, step(13, rank=rank)) for rank in range(8))])[-1] == (
        "measure step 13/22, loss 3.1416, 8,192 token/p/s, MFU 34.8% (PaLM 34.8%), 66.7 GiB (rank 7), "
        "604 W, 67 °C (rank 7), 0:18 left"
    )


def test_a_log_gets_a_sign_of_life_that_names_who_is_late(plan_of: PlanOf) -> None:
    events = [(1.0, phase("setup", 0)), (1.0, phase("data", 1))]
    assert in_a_log(plan_of(2), events, until_s=61.5)[-1] == (
        "phase data for 1:00, data: rank 1; setup: 1 rank, stalled: rank 1 at data for 1:00"
    )
    assert in_a_log(plan_of(1), [(1.0, phase("setup"))], until_s=121.0)[-1] == "phase setup for 2:00"
    counted = [(1.0, phase("evaluate")), (2.0, progress(0, 20, 100))]
    assert in_a_log(plan_of(1), counted, until_s=62.0)[-1] == "phase evaluate for 1:01, 20/100"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("ranks", [1, 8, 256])
def test_the_view_fits_the_terminal_and_leaves_nothing_out(plan_of: PlanOf, ranks: int, width: int) -> None:
    plan = plan_of(ranks)
    lines = last_frame(plan, on_a_terminal(plan, recorded.run(ranks, late=(9,)), width=width))
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for name in ("loss", "token/p/s", "MFU", "step", "memory", "power", "ranks"):
        assert any(f"  {line}".find(f"  {name} ") >= 0 for line in lines), name
    most = f"rank {ranks - 1}"
    assert "loss 3.1416" in text
    assert "token/p/s 8,192" in text
    assert "MFU 34.8% (PaLM 34.8%)" in text
    assert "step 2.00 s" in text
    assert "memory 66.0 GiB power 600 W, 60 °C" in text or f"({most})" in text
    if ranks == 256:
        assert "ranks setup: rank 9; measure: 255 ranks" in text
        assert "stalled rank 9 at setup for 0:34" in text
        assert "setup for 0:34" in text
    else:
        assert "measure 12/22" in text
        assert "0:34, 0:20 left" in text
    assert ("slowest" in text) is (ranks > 1)


def test_a_wide_terminal_needs_few_lines_and_a_narrow_one_has_one_figure_a_line(plan_of: PlanOf) -> None:
    events = recorded.run(8)
    wide, narrow = (last_frame(plan_of(8), on_a_terminal(plan_of(8), events, width=width)) for width in (120, 40))
    assert len(wide) == 6
    assert len(narrow) == 12
    assert narrow[1].split() == ["measure", "12/22", "0:34,", "0:20", "left"]
    assert narrow[3] == "loss        3.1416"


def test_the_cursor_comes_back_and_the_last_state_stays(plan_of: PlanOf) -> None:
    text = on_a_terminal(plan_of(1), recorded.run(1))
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "measure 12/22" in text[text.rindex("toy X1x1x1") :]


def test_it_is_redrawn_twice_a_second_at_most(plan_of: PlanOf) -> None:
    often = [(10.0 + n / 100, step(3 + n, 500)) for n in range(200)]
    text = on_a_terminal(plan_of(1), [(0.0, phase("measure")), *often])
    assert 4 <= text.count("toy X1x1x1 base") <= 8


def kind_of(plan: Plan, console: Console) -> object:
    return open_view(plan, range(1), console, 0.0)._view  # type: ignore[attr-defined]


class Gone(Terminal):
    """A terminal that is closed after so many characters."""

    def __init__(self, left: int, error: Exception, *, terminal: bool) -> None:
        super().__init__()
        self.left, self.error, self.terminal = left, error, terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("left", [0, 60, 900])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(32, "Broken pipe")])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_goes_on_when_nobody_can_look_any_more(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, left: int, error: Exception, terminal: bool
) -> None:
    file = Gone(left, error, terminal=terminal)
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setenv("TERM", "xterm")
    console = cli.new_console(stderr=True)
    view = open_view(plan_of(1), range(1), console, 0.0)
    recorded.drive(view, [(s, e) for s, e in recorded.run(1)] * 3)
    assert file.left < 0
    assert console.quiet
    complain(console, "nor does what cannot be read end it")


def test_no_color_is_honoured(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = "\x1b[3"  # foreground colours are 30 to 39
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured in on_a_terminal(plan_of(1), recorded.run(1), color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured not in on_a_terminal(plan_of(1), recorded.run(1), color_system="standard")


def test_a_log_is_never_redrawn_even_where_colours_are_forced(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(kind_of(plan_of(1), Console(file=io.StringIO())), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(kind_of(plan_of(1), Console(file=Terminal(), force_terminal=True)), Lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_is_shown_as_it_is(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """Neither markup nor emoji: ``[/usr]`` would end a style that nobody began, and that is an error."""
    message = "[/usr/lib] said [bold] at :100:"
    monkeypatch.setattr("sys.stderr", Terminal() if terminal else io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    console = cli.new_console(stderr=True)
    view = open_view(plan_of(1), range(1), console, 0.0)
    assert isinstance(view._view, Panel) is terminal  # type: ignore[attr-defined]
    view.show(warning(message), 1.0)
    view.close()
    assert f"warning: {message}" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_checkpoint_is_told_by_one_rank(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=Terminal() if terminal else io.StringIO(), force_terminal=terminal, width=120)
    view = open_view(plan_of(2), range(2), console, 0.0)
    assert isinstance(view._view, Panel) is terminal  # type: ignore[attr-defined]
    for rank in (1, 0):
        saved = ev.CheckpointEvent(**AT | {"rank": rank}, action="saved", folder="ck/a", step=45)
        view.show(saved, 1.0)
    view.close()
    assert console.file.getvalue().count("checkpoint saved: ck/a, step ") == 1  # type: ignore[attr-defined]


def test_a_quiet_console_gets_errors_only(plan_of: PlanOf) -> None:
    assert in_a_log(plan_of(1), recorded.run(1), quiet=True) == []
    assert on_a_terminal(plan_of(1), recorded.run(1), quiet=True) == ""
    console = Console(file=io.StringIO(), quiet=True, width=20)
    complain(console, "oom: rank 1 in step 3: out of memory")
    console.print("and no more")
    assert console.file.getvalue() == "oom: rank 1 in step 3: out of memory\n"  # type: ignore[attr-defined]
