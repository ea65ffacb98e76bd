"""The reference chip: always there, never ranked, and DeepSpeed on it without a compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.plugins import select
from plugins import cpu
from schemas.chip import Device
from tests.conftest import python_path

ROOT = Path(__file__).resolve().parents[2]
DEVICE = Device(torch_device="cpu", index=0, name="a CPU", collective_backend="gloo", math_mode={})


def test_the_chip_is_the_reference_and_has_no_peak():
    (chip,) = select("cpu").chips
    assert (chip.name, chip.reference, chip.memory_gb) == ("CPU", True, None)
    assert [peak.tflops for peak in chip.peaks] == [None] * 5
    assert all(peak.source for peak in chip.peaks)


def test_every_machine_has_one_that_any_number_of_workers_share():
    (result,) = select("cpu").probe()
    assert (result.chip, result.count, result.replaces) == ("CPU", None, ())
    assert result.device_name


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1"), (1, 1, "1")])
def test_workers_share_the_cores(make_plan, monkeypatch, cores, workers, threads):
    monkeypatch.setattr(cpu, "usable_cores", lambda: cores)
    assert cpu.launch_env(make_plan(per_node=workers)) == {"OMP_NUM_THREADS": threads}


@pytest.mark.parametrize(("precision", "pinned"), [("fp32", "highest"), ("bf16", "highest"), ("tf32", "high")])
def test_init_device_pins_fp32_products(make_plan, restore_math_mode, precision, pinned):
    torch = pytest.importorskip("torch")
    device = select("cpu").init_device(make_plan(precision, "CPU"), 3)
    assert (device.torch_device, device.type, device.collective_backend) == ("cpu", "cpu", "gloo")
    assert device.math_mode == {"float32_matmul_precision": pinned}
    assert torch.get_float32_matmul_precision() == pinned


def test_the_environment_names_threads_and_math_libraries():
    torch = pytest.importorskip("torch")
    described = select("cpu").describe_environment(DEVICE)
    assert described["torch_threads"] == str(torch.get_num_threads())
    assert described.keys() == {"cpu_capability", "cpu_libraries", "torch_threads"}


TRAIN = """
import sys
from tests.core.engines.job import main
main({"engine": "deepspeed", "case": "llama2_7b", "sets": {"zero_stage": 3}, "steps": 5, "store": sys.argv[1]})
from deepspeed.accelerator import get_accelerator
print(get_accelerator().device_name())
"""
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "nvcc", "ninja")


@pytest.mark.deepspeed
def test_deepspeed_trains_on_the_cpu_and_calls_no_compiler(tmp_path):
    pytest.importorskip("deepspeed")
    calls = tmp_path / "calls"
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in COMPILERS:
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "$0 $*" >> "{calls}"\nexit 1\n', encoding="utf-8")
        tool.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DS_", "CC", "CXX"))}
    environment = {**kept, "PATH": str(tools), "PYTHONPATH": python_path(), "LOCAL_RANK": "0", "RANK": "0"}
    environment |= {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "WORLD_SIZE": "1"}
    environment |= {"ACCELMARK_CACHE": str(tmp_path / "cache"), "LOCAL_WORLD_SIZE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "store")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    told, accelerator = result.stdout.splitlines()[-2:]
    losses = json.loads(told)["losses"]
    assert losses[0] > losses[-1], losses
    assert accelerator == "cpu"
    assert not calls.exists(), calls.read_text(encoding="utf-8")
    assert not (tmp_path / "extensions").exists()


def test_other_engines_need_no_preparation(make_plan, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert select("cpu").prepare_engine(make_plan(engine="torch"), DEVICE) is None
    assert "DS_ACCELERATOR" not in os.environ
