"""What a trace says about a step's time, on traces small enough to add up by hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from core.trace_table import read_profile

NAME = "profile/rank00000.json.gz"


def event(cat: str, name: str, start: float, end: float, tid: int = 7) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start * 1e6, "dur": (end - start) * 1e6, "tid": tid}


def kernel(name: str, start: float, end: float, stream: int = 7) -> dict[str, Any]:
    return event("kernel", name, start, end, stream)


def launched(call: dict[str, Any], kernel: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The host's call and the kernel that it launched."""
    return [one | {"args": {"correlation": number}} for one in (call, kernel)]


def led(*events: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """``events`` behind a leading step, whose last kernel ends as their first one begins."""
    kinds = {one["cat"] for one in events}
    kind = "kernel" if kinds & {"kernel", "gpu_memcpy"} else "cpu_op"
    first = min(one["ts"] for one in events if one["cat"] in {kind, "gpu_memcpy"}) / 1e6
    return event("user_annotation", "accelmark::leading", -9, -8), event(kind, "before", -8.5, first), *events


def seconds(tmp_path: Path, *events: dict[str, Any], steps: int = 1) -> dict[str, float]:
    """Seconds of a step by share, without those that are 0."""
    file = tmp_path / "trace.json.gz"
    if not any(one["name"] == "accelmark::leading" for one in events):
        events = led(*events)
    with gzip.open(file, "wt", encoding="utf-8") as opened:
        json.dump({"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}, opened)
    profile = read_profile(file, steps, NAME)
    assert profile.trace == NAME
    assert profile.step_time_s == pytest.approx(sum(profile.seconds.values()))
    return {share: pytest.approx(value) for share, value in profile.seconds.items() if value}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("nvjet_tst_192x192_64x4_1x2_h_bz_coopB_TNT", "matrix_products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix_products"),
        ("void cutlass::device_kernel<cutlass_80_tensorop_bf16>", "matrix_products"),
        ("triton_tem_fused_mm_3", "matrix_products"),
        ("triton_tem_fused_flex_attention_backward_1", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("triton_poi_fused_mul_silu_4", "memory_bound"),
        ("void at::native::multi_tensor_apply_kernel", "memory_bound"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
    ],
)
def test_kernels_are_told_by_their_names(tmp_path: Path, name: str, share: str) -> None:
    assert seconds(tmp_path, kernel(name, 1, 3)) == {share: 2}


def test_steps_count_from_where_the_leading_ones_last_kernel_ends(tmp_path: Path) -> None:
    """Whatever of theirs was launched before then, and whatever the host was late with after it."""
    host = 100
    found = seconds(
        tmp_path,
        event("user_annotation", "accelmark::leading", 0, 2, host),
        event("gpu_user_annotation", "accelmark::leading", 3, 9),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 0.5, 0.6, host), kernel("gemm", 3, 5), 1),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 1, 1.1, host), kernel("elementwise", 5, 6), 2),
        *launched(
            event("cuda_runtime", "cudaMemcpyAsync", 2.1, 2.2, host),
            event("gpu_memcpy", "Memcpy PtoP (Device -> Device)", 5, 7, 20),
            3,
        ),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 3, 3.1, host), kernel("gemm", 9, 12), 4),
    )
    assert found == {"communication": 1, "host": 2, "matrix_products": 3}


def test_communication_counts_only_where_nothing_hides_it(tmp_path: Path) -> None:
    found = seconds(tmp_path, kernel("gemm", 0, 4), kernel("ncclAllGather", 3, 6, stream=20))
    assert found == {"matrix_products": 4, "communication": 2}


def test_gaps_between_kernels_are_the_hosts(tmp_path: Path) -> None:
    found = seconds(tmp_path, kernel("gemm", 0, 1), kernel("gemm", 3, 4), event("gpu_memcpy", "copy", 4, 5))
    assert found == {"matrix_products": 2, "host": 2, "memory_bound": 1}


def test_two_streams_at_work_count_once(tmp_path: Path) -> None:
    found = seconds(tmp_path, kernel("gemm", 0, 4), kernel("elementwise", 1, 6, stream=8))
    assert found == {"matrix_products": 4, "memory_bound": 2}


def test_a_marked_range_claims_the_kernels_that_were_launched_in_it(tmp_path: Path) -> None:
    """However much later they run, and whichever way they were launched."""
    host = 100
    found = seconds(
        tmp_path,
        event("user_annotation", "accelmark::loss", 0.2, 0.5, host),
        event("user_annotation", "accelmark::optimizer", 0.5, 0.7, host),
        event("user_annotation", "somebody else's", 0, 0.2, host),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 0.1, 0.2, host), kernel("gemm", 0, 2), 1),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 0.2, 0.3, host), kernel("gemm", 2, 4), 2),
        *launched(event("cuda_driver", "cuLaunchKernel", 0.5, 0.6, host), kernel("triton_poi_copy", 5, 7), 3),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 0.6, 0.7, 101), kernel("elementwise", 7, 8), 4),
        *launched(
            event("cuda_runtime", "cudaLaunchKernel", 0.3, 0.4, host), kernel("ncclAllGather", 4.5, 8.5, 20), 5
        ),
    )
    assert found == {
        "matrix_products": 2, "loss": 2, "host": 0.5, "communication": 1, "optimizer": 2, "memory_bound": 1,
    }  # fmt: skip


def test_what_moves_shards_is_communication_whatever_its_kernels_are(tmp_path: Path) -> None:
    host = 100
    found = seconds(
        tmp_path,
        event("user_annotation", "FSDP::all_gather_copy_out (model.layers.1)", 1, 2, host),
        event("user_annotation", "accelmark::communication", 3, 4, host),
        *launched(
            event("cuda_runtime", "cudaLaunchKernel", 1.1, 1.2, host), kernel("split_with_sizes", 10, 12), 1
        ),
        *launched(event("cuda_runtime", "cudaMemcpyAsync", 2.1, 2.2, host), kernel("elementwise", 12, 13), 2),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 3.1, 3.2, host), kernel("elementwise", 13, 14), 3),
        event("gpu_memcpy", "Memcpy PtoP (Device -> Device)", 14, 15),
    )
    assert found == {"communication": 4, "memory_bound": 1}


def test_the_innermost_range_claims_a_kernel(tmp_path: Path) -> None:
    host = 100
    found = seconds(
        tmp_path,
        event("user_annotation", "accelmark::loss", 0, 10, host),
        event("user_annotation", "FSDP::pre_backward", 2, 4, host),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 1, 1.1, host), kernel("elementwise", 20, 21), 1),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 3, 3.1, host), kernel("elementwise", 21, 23), 2),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 5, 5.1, host), kernel("elementwise", 23, 27), 3),
        *launched(event("cuda_runtime", "cudaLaunchKernel", 10, 10.1, host), kernel("elementwise", 27, 35), 4),
    )
    assert found == {"loss": 5, "communication": 2, "memory_bound": 8}


def test_without_an_accelerator_operators_take_the_kernels_place(tmp_path: Path) -> None:
    found = seconds(
        tmp_path,
        event("cpu_op", "aten::linear", 0, 4),
        event("cpu_op", "aten::addmm", 1, 4),
        event("user_annotation", "accelmark::optimizer", 6, 8),
        event("cpu_op", "aten::_fused_adamw_", 6, 8),
        event("cpu_op", "gloo:all_reduce", 5, 7, tid=9),
        steps=2,
    )
    assert found == {
        "memory_bound": 0.5, "matrix_products": 1.5, "host": 0.5, "communication": 0.5, "optimizer": 1,
    }  # fmt: skip
