"""Megatron's arguments, as they follow from the plan; needs neither torch nor Megatron."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.cases import resolve
from core.engines.megatron.config import megatron_config
from schemas.units import Parallel

CASE = resolve("cases/llama2_70b").case


def config(dp: int = 1, **changes: Any) -> dict[str, Any]:
    hp = CASE.hyper_parameters.model_validate(CASE.hyper_parameters.model_dump() | changes)
    parallel = Parallel(tp=hp.tensor_parallel, pp=hp.pipeline_parallel, dp=dp)
    return megatron_config(hp, CASE.model, parallel)


def test_the_published_run() -> None:
    layers = "10-10-10-10-10-10-11-9"
    found = config(tensor_parallel=4, pipeline_parallel=8, pipeline_layers=layers)
    transformer = found["transformer"]
    assert transformer["pipeline_model_parallel_layout"] == "Et*10|t*10|t*10|t*10|t*10|t*10|t*11|t*9L"
    assert (transformer["num_query_groups"], transformer["kv_channels"]) == (8, 128)
    assert transformer["sequence_parallel"] is True
    assert transformer["bf16"] is True
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("stages", "overlapped"), [(1, False), (2, True)])
def test_interleaved_stages_never_send_in_batches(stages: int, *, overlapped: bool) -> None:
    transformer = config(pipeline_parallel=2, virtual_pipeline_stages=stages)["transformer"]
    assert (transformer["overlap_p2p_comm"], transformer["batch_p2p_comm"]) == (overlapped, not overlapped)


def test_one_stage_has_no_layout() -> None:
    assert "pipeline_model_parallel_layout" not in config()["transformer"]


@pytest.mark.parametrize(
    ("dp", "zero_stage", "sharded", "overlapped"),
    [(1, 1, False, False), (2, 0, False, True), (2, 1, True, True)],
)
def test_what_replicas_share(dp: int, zero_stage: int, *, sharded: bool, overlapped: bool) -> None:
    found = config(dp, zero_stage=zero_stage)
    assert found["data_parallel"] == {
        "grad_reduce_in_fp32": True,
        "use_distributed_optimizer": sharded,
        "overlap_grad_reduce": overlapped,
        "overlap_param_gather": sharded,
    }
    assert found["optimizer"]["use_distributed_optimizer"] is sharded


@pytest.mark.parametrize(("precision", "half"), [("fp32", False), ("tf32", False), ("amp", True), ("bf16", True)])
def test_fused_cross_entropy_would_round_fp32_gradients(precision: str, *, half: bool) -> None:
    found = config(precision=precision, compile=True)
    assert found["transformer"]["bf16"] is half
    assert found["optimizer"]["bf16"] is half
    assert found["transformer"]["cross_entropy_loss_fusion"] is half
    assert found["transformer"]["bias_activation_fusion"] is True
