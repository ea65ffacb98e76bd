"""What a vendor's plugin and a user's chip file leave in the record of a whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from core.record import read_record
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
PLUGIN = """
import warnings
from core import hookimpl
from core.notices import notify, watch
from plugins import cpu

ACCELMARK_HOOK_API = 1

@hookimpl
def chips():
    return [chip.model_copy(update={"vendor": "acme"}) for chip in cpu.chips()]

@hookimpl
def probe():
    return cpu.probe()

@hookimpl
def init_device(plan):
    notify("acme 9.9: nobody has reported this series to work")
    watch("will fall back to run on the CPU")
    return cpu.init_device(plan)

@hookimpl
def optimizer_wrap(optimizer):
    for operator in ("x", "y", "x"):
        warnings.warn(f"The operator 'aten::{operator}' will fall back to run on the CPU.")
    warnings.warn("of no interest to a reader of the record")
    return None
"""
CASE = "from cases.llama2_7b import CASE\n"
CONFIG = """
from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="acme", topology="CPUx1x2", engine="torch", runs=(Run(id="base"),),
    defaults={
        "model.hidden_size": 32, "model.intermediate_size": 48, "model.num_layers": 1, "model.num_heads": 2,
        "model.num_kv_heads": 2, "sequence_length": 32, "measure.warmup_steps": 1,
        "measure.steps": 2, "data.generated_sequences": 64, "precision": "fp32",
    },
)
"""
CHIPS = [{"vendor": "acme", "name": "CPU", "peaks": [{"precision": "fp32", "tflops": 1, "source": "my order"}]}]


def test_the_record_holds_the_plugin_s_notices_and_names_the_user_s_chip_file(tmp_path: Path) -> None:
    site, case, info = tmp_path / "site", tmp_path / "mine", tmp_path / "site" / "acme-1.0.dist-info"
    for folder in (case, info):
        folder.mkdir(parents=True)
    (site / "acme_plugin.py").write_text(PLUGIN, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[accelmark.vendors]\nacme = acme_plugin\n", encoding="utf-8")
    (case / "__init__.py").write_text(CASE, encoding="utf-8")
    (case / "config_CPUx1x2.py").write_text(CONFIG, encoding="utf-8")
    chips = tmp_path / "chips.json"
    chips.write_text(json.dumps(CHIPS), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "core.run", str(case), "--config", "CPUx1x2", "--out", str(tmp_path / "runs")],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {
            "ACCELMARK_CACHE": str(tmp_path / "cache"), "ACCELMARK_CHIPS": str(chips),
            "PYTHONPATH": python_path(site),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "runs").glob("*/record.json")
    record = read_record(file)
    told = [message for message in record.warnings if not message.startswith("straggler")]
    assert told == [
        "acme 9.9: nobody has reported this series to work",
        "The operator 'aten::x' will fall back to run on the CPU.",
        "The operator 'aten::y' will fall back to run on the CPU.",
    ]
    assert record.plan is not None
    assert record.plan.chip.peak("fp32").source == "user: chips.json: my order"
    log = (file.parent / "logs" / "rank00000.log").read_text(encoding="utf-8")
    assert "of no interest to a reader of the record" in log
    assert "RecordWarning: acme 9.9" in log
