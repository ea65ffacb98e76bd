"""The plugin torch_musa on emulated S4000s: the cases' configs end to end, losses as on the CPU, and failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.record import Record
from tests.emulators.jobs import Job, assert_learns_alike, run

pytestmark = pytest.mark.usefixtures("musa")
SMALL_70B = {
    "tensor_parallel": 2, "pipeline_parallel": 2, "pipeline_layers": "3-2", "model.num_layers": 5,
    "model.num_kv_heads": 2,
}  # fmt: skip
PLAIN = {"precision": "fp32"}
CASES = (  # a config, what stays of it, and the tolerance: products of bf16 leave more than those of fp32
    (Job("llama2_7b", "S4000x1x8"), "deepspeed ZeRO-3 TP1PP1DP2 amp sdpa full", 1e-4),
    (Job("llama2_7b", "S4000x1x8", changes=PLAIN), "deepspeed ZeRO-3 TP1PP1DP2 fp32 sdpa full", 1e-6),
    # configs of other vendors' chips
    (
        Job("baichuan2_13b", "H800x2x8", run="base", changes=PLAIN),
        "deepspeed ZeRO-1 TP1PP1DP2 fp32 eager full",
        1e-6,
    ),
    (
        Job("llama2_70b", "C500x4x8", ranks=4, run="fp32_tp8pp4", changes=SMALL_70B),
        "megatron ZeRO-1 TP2PP2DP1 fp32 sdpa selective",
        1e-6,
    ),
)


@pytest.mark.parametrize(
    ("job", "strategy", "tolerance"), CASES, ids=[f"{case[0].case} {case[1]}" for case in CASES]
)
def test_a_case_s_config_runs_end_to_end_and_learns_as_on_the_cpu(
    job: Job, strategy: str, tolerance: float, tmp_path: Path
) -> None:
    records = run(job, "torch_musa", "S4000", tmp_path)
    assert_learns_alike(records, run(job, "cpu", "CPU", tmp_path), tolerance)
    (record,) = records
    assert (record.vendor, record.chip, record.case) == ("torch_musa", "S4000", job.case)
    assert told(record) == strategy
    assert record.optimizer == "torch_musa.optim.FusedAdamW"
    assert record.math_mode == {"mudnn_allow_tf32": "False", "float32_matmul_precision": "highest"}
    assert record.environment["gpu"] == "MTT S4000"
    assert_counted(record)


def told(record: Record) -> str:
    """What the run's plan says of strategy."""
    assert record.plan is not None
    hp = record.plan.hyper_parameters
    return (
        f"{record.engine} ZeRO-{hp.zero_stage} {record.plan.parallel.render()} {hp.precision} {hp.attention} "
        f"{hp.activation_checkpointing}"
    )


def assert_counted(record: Record) -> None:
    """Peaks are the device's own."""
    memory = record.memory
    assert memory.capacity_gib == 48
    assert memory.peak_allocated_gib is not None
    assert memory.peak_reserved_gib is not None
    assert 0 < memory.peak_allocated_gib <= memory.peak_reserved_gib < 48
    assert memory.peak_device_gib == memory.peak_reserved_gib
    assert memory.oom_count == 0


ALONE = Job("llama2_7b", "S4000x1x8", ranks=1)


def test_out_of_memory_is_told_with_the_device_s_numbers(tmp_path: Path) -> None:
    (record,) = run(ALONE, "torch_musa", "S4000", tmp_path, "--engine", "torch", EMULATED_HELD_GIB="47.998")
    assert (record.status, record.emulated, record.rankable) == ("oom", True, False)
    memory = record.memory
    assert memory.capacity_gib == 48
    assert memory.oom_count == 1
    assert memory.peak_allocated_gib is not None
    assert memory.peak_device_gib is not None
    assert 0 < memory.peak_allocated_gib < 0.002
    assert 47.998 < memory.peak_device_gib <= 48
    assert record.reason is not None
    assert "MUSA out of memory. Tried to allocate" in record.reason
    assert "used by all 48.00, of 48.00)" in record.reason


def test_a_missing_operator_is_told_with_vendor_and_module(tmp_path: Path) -> None:
    variables = {"EMULATED_MISSING_OPERATORS": "aten::silu"}
    (record,) = run(ALONE, "torch_musa", "S4000", tmp_path, "--engine", "torch", **variables)
    assert record.status == "crashed"
    assert record.reason is not None
    assert record.reason.startswith(
        "rank 0 in step 1: vendor torch_musa has no operator aten::silu.out, needed in module model.layers.0.mlp: "
        "NotImplementedError: Could not run 'aten::silu.out' with arguments from the 'musa' backend"
    )
