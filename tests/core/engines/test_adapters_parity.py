"""Adapters on every engine that trains them: one batch against two ranks of two micro-batches each."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.core.engines.conftest import RunJob, train
from tests.core.engines.test_parity import LAYOUTS, TOLERANCE, layouts

ONE_BATCH = {"lora.dropout": 0.0, "local_batch_size": 8, "gradient_accumulation_steps": 1, "clip_grad_norm": 0.5}
TWO_BY_TWO = ONE_BATCH | {"local_batch_size": 2, "gradient_accumulation_steps": 2}
CASE = "llama2_7b_finetune"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One rank with the whole batch."""
    return train(tmp_path_factory.mktemp("one"), "torch", 1, ONE_BATCH, case=CASE)


@pytest.mark.parametrize("layout", layouts("DDP", "FSDP2 stage 3", "ZeRO-2", "ZeRO-3"))
def test_two_ranks_of_two_micro_batches_train_as_one_batch(
    layout: str, one: dict[str, Any], run_job: RunJob
) -> None:
    engine, sets = LAYOUTS[layout]
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    two = run_job(engine, 2, TWO_BY_TWO | sets, case=CASE)
    assert two["losses"] == pytest.approx(one["losses"], rel=TOLERANCE)
    assert two["norms"] == pytest.approx(one["norms"], rel=TOLERANCE * 10)
    assert one["losses"][-1] < one["losses"][0]
    parameters = one["parameters"]
    assert two["parameters"] == parameters
    assert 0 < parameters["trainable"] < parameters["total"] / 5


@pytest.mark.parametrize("layout", layouts("DDP", "ZeRO-2"))
def test_a_mean_of_means_is_caught(layout: str, one: dict[str, Any], run_job: RunJob) -> None:
    engine, sets = LAYOUTS[layout]
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    faulty = run_job(engine, 2, TWO_BY_TWO | sets, case=CASE, fault="mean_of_means")
    assert faulty["losses"] != pytest.approx(one["losses"], rel=TOLERANCE)
    assert faulty["norms"] != pytest.approx(one["norms"], rel=TOLERANCE * 10)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bit_weights_beside_fp32_adapters_train_alike(
    precision: str, one: dict[str, Any], run_job: RunJob
) -> None:
    half = run_job("torch", 1, ONE_BATCH | {"precision": precision}, case=CASE)
    assert half["losses"] == pytest.approx(one["losses"], rel=5e-3)
    assert half["losses"] != one["losses"]
