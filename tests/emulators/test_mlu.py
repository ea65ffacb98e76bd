"""The plugin cambricon on emulated MLU590s: the cases' configs end to end, losses as on the CPU, and fallbacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulators.jobs import Job, assert_learns_alike, run

pytestmark = pytest.mark.usefixtures("mlu")
FALLS_BACK = "The operator 'aten::{}' is not currently supported on MLU and will fall back to run on the CPU."
FUSED = "plugins.cambricon.optimizer.FusedAdamW"
LLAVA = Job(  # DeepSpeed: ZeRO-2 in stage pretrain, ZeRO-3 in stage finetune; SDPA, full checkpointing
    "llava1_5_13b",
    "MLUx1x8",
    changes={
        "vision.hidden_size": 32, "vision.intermediate_size": 64, "vision.num_layers": 3, "vision.num_heads": 4,
        "vision.image_size": 56, "model.max_positions": 1024, "sequence_length": 384, "precision": "fp32",
        "gradient_accumulation_steps": 1,
    },
)  # fmt: skip


def test_both_stages_of_llava_run_end_to_end_and_learn_as_on_the_cpu(tmp_path: Path) -> None:
    records = run(LLAVA, "cambricon", "MLU", tmp_path, EMULATED_MISSING_OPERATORS="aten::silu")
    assert_learns_alike(records, run(LLAVA, "cpu", "CPU", tmp_path), 1e-6)
    stages = [(record.run, record.plan.hyper_parameters.zero_stage) for record in records if record.plan]
    assert stages == [("pretrain", 2), ("finetune", 3)]
    for record in records:
        assert (record.vendor, record.chip, record.engine) == ("cambricon", "MLU", "deepspeed")
        assert record.environment["gpu"] == "MLU590-M9"
        assert record.optimizer == FUSED
        assert record.memory.capacity_gib == 80
        assert [warning for warning in record.warnings if FALLS_BACK.format("silu") in warning]


LORA = Job(  # engine torch, whose config is of another vendor's chip
    "llama2_7b_finetune",
    "A100x1x1",
    run="base",
    changes={
        "precision": "fp32", "sequence_length": 128, "measure.epochs": 1, "data.generated_sequences": 48,
        "lora.dropout": 0,  # a device draws other numbers than the CPU
    },
)  # fmt: skip


def test_adapters_are_trained_end_to_end_and_learn_as_on_the_cpu(tmp_path: Path) -> None:
    records = run(LORA, "cambricon", "MLU", tmp_path)
    assert_learns_alike(records, run(LORA, "cpu", "CPU", tmp_path), 1e-6)
    (record,) = records
    assert (record.vendor, record.chip, record.engine) == ("cambricon", "MLU", "torch")
    assert record.optimizer == FUSED
    assert record.parameters is not None
    assert 0 < record.parameters.trainable < record.parameters.total / 10
    assert record.accuracy.keys() == {"MMLU"}


def test_what_is_computed_on_the_host_is_right_and_told_or_refused() -> None:
    job = "import torch, torch_mlu; print(torch.ones(3, device='mlu').cumsum(0).tolist())"
    variables = os.environ | {"EMULATED_MISSING_OPERATORS": "aten::cumsum"}
    command = [sys.executable, "-c", job]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[1.0, 2.0, 3.0]\n", done.stderr
    assert FALLS_BACK.format("cumsum") in done.stderr
    refusing = variables | {"ENABLE_FALLBACK_TO_CPU": "0"}
    done = subprocess.run(command, env=refusing, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "NotImplementedError: Could not run 'aten::cumsum" in done.stderr
