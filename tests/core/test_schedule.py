"""The learning rate of every step."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.schedule import learning_rate
from schemas.hyperparameters import HyperParameters


def rates(steps: int, **changes: Any) -> list[float]:
    values = {"precision": "bf16", "local_batch_size": 1, "sequence_length": 8, "learning_rate": 1.0}
    hp = HyperParameters.model_validate(values | changes)
    return [learning_rate(hp, step) for step in range(1, steps + 1)]


def test_constant_is_the_same_from_the_first_step() -> None:
    assert rates(3) == [1.0, 1.0, 1.0]
    assert rates(3, schedule_steps=2) == [1.0, 1.0, 1.0]


def test_warm_up_rises_evenly_and_reaches_the_rate_in_its_last_step() -> None:
    assert rates(6, lr_warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_evenly_to_the_least_and_stays() -> None:
    assert rates(6, schedule="linear", schedule_steps=4, min_learning_rate=0.2) == pytest.approx(
        [0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    )


def test_cosine_passes_the_middle_half_way() -> None:
    found = rates(12, schedule="cosine", schedule_steps=10, lr_warmup_steps=2, min_learning_rate=0.1)
    assert found[:2] == [0.5, 1.0]
    assert found[5] == pytest.approx(0.55)  # half of the 8 steps that are left
    assert found[3] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert found[9:] == pytest.approx([0.1, 0.1, 0.1])


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 50),
    decay=st.integers(1, 50),
    least=st.floats(0, 1),
)
def test_a_rate_rises_in_warm_up_falls_after_it_and_keeps_its_bounds(
    schedule: str, warmup: int, decay: int, least: float
) -> None:
    found = rates(
        warmup + decay + 5, schedule=schedule, schedule_steps=warmup + decay, lr_warmup_steps=warmup,
        min_learning_rate=least,
    )  # fmt: skip
    rising, falling = found[:warmup], found[max(0, warmup - 1) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0 < rate <= 1 for rate in rising)
    assert all(rate >= least or rate == pytest.approx(least) for rate in falling)
    if schedule != "constant":
        assert found[-1] == pytest.approx(least)


def test_an_epochs_factor_applies_after_each_epoch() -> None:
    hp = HyperParameters(
        precision="fp32", local_batch_size=1, sequence_length=8, learning_rate=1e-4, schedule="epoch",
        epoch_factor=0.85, min_learning_rate=6e-5,
    )  # fmt: skip
    rates = [learning_rate(hp, step, epoch) for step, epoch in ((1, 0), (50, 0), (51, 1), (101, 2), (500, 9))]
    assert rates == pytest.approx([1e-4, 1e-4, 8.5e-5, 7.225e-5, 6e-5])
