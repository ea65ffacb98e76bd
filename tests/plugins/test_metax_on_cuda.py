"""The MetaX plugin in whole runs on an NVIDIA GPU whose torch says that its CUDA is MACA.

Nothing else can stand for MetaX's cards, since torch calls them ``cuda``. The marker also says ``__emulated__``:
the record is labelled, and no measurement of such a card.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import python_path
from tests.emulators.jobs import Job, assert_close, run

SAMPLES = Path(__file__).parent / "samples"
MARKER = """
import torch

def mark():
    torch.version.maca = "2.32.0.6"
    torch.cuda.get_device_name = lambda device=None: "MetaX C500"
    torch.cuda.__emulated__ = True
"""
WIDE = {"precision": "fp32", "model.hidden_size": 256}
JOBS = {
    "torch": Job("llama2_7b", "S4000x1x8", ranks=1, changes=WIDE),
    "deepspeed": Job("llama2_7b", "S4000x1x8", ranks=1, changes=WIDE),
    "megatron": Job(  # MetaX's own config
        "llama2_70b",
        "C500x4x8",
        ranks=1,
        run="fp32_tp8pp4",
        changes={
            **WIDE, "tensor_parallel": 1, "pipeline_parallel": 1, "pipeline_layers": "none",
            "sequence_parallel": False, "zero_stage": 0, "model.num_kv_heads": 2,
        },
    ),
}  # fmt: skip


@pytest.fixture
def marked(tmp_path: Path) -> dict[str, str]:
    """Variables of processes whose ``import torch`` sets the marker, and who find MetaX's tool."""
    site, tool = tmp_path / "site", tmp_path / "bin" / "mx-smi"
    info = site / "maca_marker-1.0.dist-info"
    for folder in (info, tool.parent):
        folder.mkdir(parents=True)
    (site / "maca_marker.py").write_text(MARKER, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: maca-marker\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[torch.backends]\nmaca_marker = maca_marker:mark\n", encoding="utf-8")
    table = (SAMPLES / "mx_smi_2.2.4.txt").read_text(encoding="utf-8").replace("C550", "C500")
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{table}\nEND\n", encoding="utf-8")
    tool.chmod(0o755)
    visible = {"MACA_VISIBLE_DEVICES": "0"}  # goes over what limits the NVIDIA GPUs of this machine
    return visible | {"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": python_path(site)}


@pytest.mark.gpu
@pytest.mark.parametrize("engine", JOBS)
def test_gpu_marked_as_metax_s_runs_and_learns_as_the_cpu(
    engine: str, marked: dict[str, str], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    if find_spec(engine) is None:
        pytest.skip(f"needs {engine}")
    job = JOBS[engine]
    # A GPU draws other numbers than a CPU from one seed, so both begin with what a run on the CPU has left.
    saved = tmp_path / "checkpoint"
    (first,) = run(job, "cpu", "CPU", tmp_path, "--engine", "torch", "--set", f"checkpoint.save={saved}")
    assert first.status == "ok", first.reason
    begun = ("--set", f"weights={saved}")
    (record,) = run(job, "metax", "C500", tmp_path, "--engine", engine, *begun, **marked)
    assert record.status == "ok", record.reason
    assert (record.vendor, record.chip, record.case, record.engine) == ("metax", "C500", job.case, engine)
    assert (record.emulated, record.rankable, record.mfu.palm) == (True, False, None)
    assert (record.environment["gpu"], record.environment["maca"]) == ("MetaX C500", "2.32.0.6")
    assert record.math_mode["METAX_USE_TF32"] == "0"
    memory = record.memory
    assert memory.capacity_gib == torch.cuda.mem_get_info()[1] / 1024**3
    assert memory.peak_allocated_gib is not None
    assert memory.peak_reserved_gib is not None
    assert memory.peak_device_gib is not None
    assert 0 < memory.peak_allocated_gib <= memory.peak_reserved_gib < memory.peak_device_gib < memory.capacity_gib
    (on_cpu,) = run(job, "cpu", "CPU", tmp_path, "--engine", "torch", *begun)
    assert on_cpu.status == "ok", on_cpu.reason
    assert_close(record.loss.curve, on_cpu.loss.curve, 1e-4)
    assert_close(record.loss.grad_norm_curve, on_cpu.loss.grad_norm_curve, 1e-2)
