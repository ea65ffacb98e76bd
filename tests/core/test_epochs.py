"""A run of whole epochs: which steps its window holds, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from pydantic import ValidationError

from core.errors import UsageError
from core.loop import Loop
from schemas.hyperparameters import Measure
from schemas.plan import Plan


def steps_left(plan: Plan, steps_per_epoch: int, warmed_up: int) -> int:
    """What the loop measures after ``warmed_up`` steps."""
    loop: Any = Loop.__new__(Loop)
    loop._plan, loop._step = plan, warmed_up
    loop._loader = SimpleNamespace(steps_per_epoch=steps_per_epoch)
    return int(loop._measured_steps())


def test_the_window_holds_every_step_after_warm_up(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(sets={"measure.epochs": "3"})
    assert steps_left(plan, 20, 5) == 55


def test_epochs_that_warm_up_uses_up_are_refused(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(sets={"measure.epochs": "1"})
    with pytest.raises(UsageError, match="1 epochs are 5 steps, which the warm-up of 5 leaves nothing of"):
        steps_left(plan, 5, 5)


def test_epochs_are_not_repeated() -> None:
    with pytest.raises(ValidationError, match="a run of 3 epochs is one window; repeat 2 cannot be"):
        Measure(epochs=3, repeat=2)
