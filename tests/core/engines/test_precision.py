"""Every precision that an engine offers trains: finite, falling losses close to fp32's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.core.engines.conftest import RunJob

CLOSE = 0.05
"""Relative to fp32: 16-bit products and stochastic rounding move the first losses by about a percent."""
TORCH = {
    "tf32": {"precision": "tf32"},
    "amp": {"precision": "amp"},
    "amp fp16": {"precision": "amp", "autocast_dtype": "fp16"},
    "bf16": {"precision": "bf16"},
    "bf16, stage 3": {"precision": "bf16", "zero_stage": 3},
    "fp16": {"precision": "fp16"},
    "bf16 stochastic": {"precision": "bf16", "optimizer_state": "bf16_stochastic"},
    "fp8": {"precision": "fp8"},
    "fp8 stochastic": {"precision": "fp8", "optimizer_state": "bf16_stochastic"},
    "fp8, stage 3": {"precision": "fp8", "zero_stage": 3},
    "bf16 stochastic, stage 3": {"precision": "bf16", "optimizer_state": "bf16_stochastic", "zero_stage": 3},
}
DEEPSPEED = {
    "amp": {"precision": "amp", "zero_stage": 2},
    "bf16": {"precision": "bf16", "zero_stage": 1},
    "bf16, stage 3": {"precision": "bf16", "zero_stage": 3},
    "offload": {"precision": "fp32", "zero_stage": 2, "offload": "optimizer"},
}


def some_slow(names: Iterable[str], *quick: str) -> list[Any]:
    """All of ``names``, slow but for ``quick``."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def assert_trains_like_fp32(losses: list[float], reference: list[float]) -> None:
    assert all(math.isfinite(loss) for loss in losses)
    assert losses == pytest.approx(reference, rel=CLOSE)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", some_slow(TORCH, "amp", "bf16, stage 3", "bf16 stochastic", "fp8 stochastic"))
def test_torch(name: str, run_job: RunJob) -> None:
    if "fp8" in name:
        pytest.importorskip("torchao")
    world = 2 if "stage" in name else 1
    reference = run_job("torch", 1, {"zero_stage": 0}, steps=6)
    answer = run_job("torch", world, {"zero_stage": 0} | TORCH[name], steps=6)
    assert_trains_like_fp32(answer["losses"], reference["losses"])


@pytest.mark.deepspeed
@pytest.mark.parametrize("name", some_slow(DEEPSPEED, "bf16"))
def test_deepspeed(name: str, run_job: RunJob) -> None:
    pytest.importorskip("deepspeed")
    reference = run_job("torch", 1, {"zero_stage": 0}, steps=6)
    answer = run_job("deepspeed", 2, DEEPSPEED[name], steps=6)
    assert_trains_like_fp32(answer["losses"], reference["losses"])


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_deepspeeds_main_weights_begin_between_the_numbers_that_16_bits_have(stage: int, run_job: RunJob) -> None:
    """From rounded values, updates this small would at first change no parameter: losses are 4e-4 off then."""
    pytest.importorskip("deepspeed")
    small = {"model.num_layers": 4, "learning_rate": 2e-5, "lr_warmup_steps": 0, "precision": "bf16"}
    plain = run_job("torch", 1, small | {"zero_stage": 0}, steps=6)
    sharded = run_job("deepspeed", 2, small | {"zero_stage": stage}, steps=6)
    assert sharded["losses"] == pytest.approx(plain["losses"], rel=5e-5)


@pytest.mark.parametrize("options", [{"activation_checkpointing": "full"}, {"loss": "chunked"}], ids=str)
def test_options_change_nothing_in_fp32(options: dict[str, object], run_job: RunJob) -> None:
    plain = run_job("torch", 1, {"zero_stage": 0}, case="baichuan2_13b")
    changed = run_job("torch", 1, {"zero_stage": 0} | options, case="baichuan2_13b")
    assert changed["losses"] == pytest.approx(plain["losses"], rel=1e-4)
    assert changed["norms"] == pytest.approx(plain["norms"], rel=1e-3)


@pytest.mark.parametrize("case", ["llama2_7b", "baichuan2_13b"])
def test_angles_and_slopes_stay_fp32_where_weights_are_gathered_in_16_bits(case: str, run_job: RunJob) -> None:
    """FSDP2 would cast them with a block's other inputs; weights without main ones behind them are not sharded."""
    first = []
    for state in ("fp32", "bf16_stochastic"):
        sets = {"zero_stage": 0, "precision": "bf16", "optimizer_state": state}
        first.append(run_job("torch", 1, sets, case=case, steps=1)["losses"][0])
    assert first[0] == first[1]
