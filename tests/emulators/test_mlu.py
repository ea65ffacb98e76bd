"""The plugin cambricon on emulated MLU590s."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulators.jobs import Job, run

pytestmark = pytest.mark.usefixtures("mlu")


def test_deepspeed_runs_on_its_own_accelerator_for_mlus_and_learns_as_on_the_cpu(tmp_path: Path) -> None:
    job = Job("llama2_7b", "CPUx1x2")
    record = run(job, "cambricon", "MLU590", tmp_path, EMULATED_MISSING_OPERATORS="aten::silu")
    assert record.status == "ok", record.reason
    assert (record.vendor, record.engine) == ("cambricon", "deepspeed")
    assert (record.emulated, record.rankable) == (True, False)
    assert record.environment["gpu"] == "MLU590-M9"
    assert record.memory.capacity_gib == 80
    told = "The operator 'aten::silu' is not currently supported on MLU and will fall back to run on the CPU."
    assert [warning for warning in record.warnings if told in warning]
    on_cpu = run(job, "cpu", "CPU", tmp_path)
    assert record.loss.curve == pytest.approx(on_cpu.loss.curve, rel=1e-6)
