"""DeepSpeed on a device that it does not know, through AccelMark's accelerator for CUDA-shaped torch modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import python_path


@pytest.mark.deepspeed
def test_deepspeed_trains_on_such_a_device(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DS_")}
    environment = {**kept, "PYTHONPATH": python_path(), "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    job = Path(__file__).with_name("accelerator_job.py")
    done = subprocess.run(
        [sys.executable, str(job), str(tmp_path / "store")],
        env=environment | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")},
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["losses"][0] > told["losses"][1] > told["losses"][2]
    assert told["class"] == "CudaShapedAccelerator"
    assert told["abstract"] is False
    assert told["names"] == ["cpu", "cpu:1", "cpu:0"]
    assert (told["backend"], told["compile"], told["synchronous"]) == ("gloo", "eager", False)
    assert told["memory"] == [7, 8, 9, 10, 30, 40]
    assert told["types"] == ["torch.float32", "torch.float16", "torch.bfloat16"]
    assert told["tensor"] == "torch.bfloat16"
    assert (told["on"], told["triton"], told["operator"], told["graph"]) == (True, False, False, None)
    assert told["environment"] == {"ACME_VISIBLE_DEVICES": "2,0"}
    assert {"synchronize", "current_stream", "record", "set_device", "memory_allocated"} <= set(told["calls"])
    assert not (tmp_path / "extensions").exists()
