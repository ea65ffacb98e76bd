"""What the training loop makes of a loss or gradient norm that is not finite, and the rates that it asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from core.data.loader import StepBatch
from core.engines.base import StepResult
from core.events import EventLog, of_kind, read_events
from core.loop import MOST_SKIPPED, Loop, NonFiniteError
from schemas import event as ev
from schemas.plan import Plan


class Batches:
    """In the place of the loader."""

    def __iter__(self) -> Iterator[StepBatch]:
        return itertools.repeat(StepBatch((), label_tokens=8, real_tokens=8, padded_tokens=0))

    def epochs_at(self, _step: int) -> int:
        return 0


class Engine:
    """Its second step's loss and norm are what the test is about."""

    device = torch.device("cpu")

    def __init__(self, loss: float, norm: float | None) -> None:
        self.results: Iterator[tuple[float, float | None]] = iter([(3.0, 1.0), (loss, norm), (3.0, 1.0)])

    def step(self, _batch: StepBatch, _learning_rate: float) -> StepResult:
        loss, norm = next(self.results)
        return StepResult(torch.tensor(loss), None if norm is None else torch.tensor(norm))


def trained(folder: Path, plan: Plan, loss: float, norm: float | None) -> list[ev.StepEvent]:
    """The events of three steps; NonFiniteError if the loop raises it."""
    log = EventLog(folder, 0)
    try:
        Loop(plan, Engine(loss, norm), Batches(), log).warm_up()
    finally:
        log.close()
    return of_kind(read_events(folder), ev.StepEvent)


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan(engine="torch", sets={"measure.warmup_steps": 3, "zero_stage": 2})


@pytest.mark.parametrize(
    ("loss", "norm", "told"),
    [
        (math.nan, 1.0, "loss is nan and gradient norm 1"),
        (math.inf, None, "loss is inf"),
        (2.5, math.inf, "loss is 2.5 and gradient norm inf"),
        (2.5, math.nan, "loss is 2.5 and gradient norm nan"),
    ],
)
def test_the_step_that_is_not_finite_ends_the_run(
    plan: Plan, tmp_path: Path, loss: float, norm: float | None, told: str
) -> None:
    with pytest.raises(NonFiniteError, match=f"^{told}\n") as raised:
        trained(tmp_path, plan, loss, norm)
    assert raised.value.step == 2
    steps = of_kind(read_events(tmp_path), ev.StepEvent)
    assert [step.loss for step in steps] == [3.0, 2.5 if loss == 2.5 else None]


def test_an_engine_that_tells_no_norm_goes_on(plan: Plan, tmp_path: Path) -> None:
    assert [step.grad_norm for step in trained(tmp_path, plan, 2.5, None)] == [1.0, None, 1.0]


@pytest.mark.parametrize("half", [{"precision": "fp16"}, {"precision": "amp", "autocast_dtype": "fp16"}], ids=str)
def test_a_loss_scaler_may_overflow(make_plan: Callable[..., Plan], tmp_path: Path, half: dict[str, str]) -> None:
    sets = {"measure.warmup_steps": 3, "zero_stage": 2, **half}
    steps = trained(tmp_path, make_plan(engine="torch", sets=sets), 2.5, math.inf)
    assert [step.grad_norm for step in steps] == [1.0, None, 1.0]


def test_traced_steps_go_on_with_the_epochs_rate(
    make_plan: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EpochOfTwoSteps(Batches):
        def epochs_at(self, step: int) -> int:
            return step // 2

    rates = []

    class RateEngine(Engine):
        def step(self, batch: StepBatch, learning_rate: float) -> StepResult:
            rates.append(learning_rate)
            return super().step(batch, learning_rate)

    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    sets = {"measure.warmup_steps": 1, "measure.profile_steps": 1, "zero_stage": 2}  # and a leading one
    sets |= {"learning_rate": 1.0, "schedule": "epoch", "epoch_factor": 0.5}
    log = EventLog(tmp_path, 0)
    loop = Loop(make_plan(engine="torch", sets=sets), RateEngine(3.0, 1.0), EpochOfTwoSteps(), log)
    loop.warm_up()
    loop.profile(tmp_path)
    log.close()
    assert rates == [1.0, 1.0, 0.5]


def test_a_loss_scaler_that_skips_every_step_ends_the_run(make_plan: Callable[..., Plan], tmp_path: Path) -> None:
    """Else a run that trains nothing would leave a record."""
    plan = make_plan(engine="torch", sets={"measure.warmup_steps": 30, "zero_stage": 2, "precision": "fp16"})
    engine = Engine(2.5, math.inf)
    engine.results = itertools.chain([(3.0, math.inf)] * 3, [(3.0, 1.0)], itertools.repeat((2.5, math.inf)))
    log = EventLog(tmp_path, 0)
    with pytest.raises(NonFiniteError, match=r"^loss is 2\.5 and gradient norm inf\n") as raised:
        Loop(plan, engine, Batches(), log).warm_up()
    log.close()
    assert raised.value.step == 4 + MOST_SKIPPED + 1
