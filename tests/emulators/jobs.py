"""A case's real config, scaled down, as runs through the command line: on the emulated device, and on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from schemas.hyperparameters import OverrideValue
from schemas.record import Record
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
SMALL: Mapping[str, OverrideValue] = {
    "model.hidden_size": 64, "model.intermediate_size": 96, "model.num_layers": 2, "model.num_heads": 4,
    "model.num_kv_heads": 4, "model.vocab_size": 512, "sequence_length": 64, "local_batch_size": 2,
    "gradient_accumulation_steps": 2, "learning_rate": 2e-3, "measure.warmup_steps": 1, "measure.steps": 3,
    "measure.min_window_s": 0, "data.generated_sequences": 64,
}  # fmt: skip
CONFIG = """
from cases.{case}.config_{real} import CONFIG as REAL
from schemas.case import HardwareConfig

CONFIG = HardwareConfig(
    vendor={vendor!r}, topology={topology!r}, engine=REAL.engine, runs=REAL.runs[:1],
    defaults=REAL.defaults | {changes!r},
)
"""


@dataclass(frozen=True)
class Job:
    """The first run of one config of a case in this repository, on fewer chips and with a small model."""

    case: str
    real: str
    """The config: its engine, ZeRO stage, precision, attention and checkpointing stay."""
    ranks: int = 2
    changes: dict[str, OverrideValue] = field(default_factory=dict)

    def on(self, vendor: str, chip: str, folder: Path) -> str:
        """Write it as a config of ``vendor`` into the case folder ``folder``; its name."""
        folder.mkdir(parents=True, exist_ok=True)
        topology = f"{chip}x1x{self.ranks}"
        text = CONFIG.format(
            case=self.case, real=self.real, vendor=vendor, topology=topology, changes={**SMALL, **self.changes}
        )
        (folder / "__init__.py").write_text(f"from cases.{self.case} import CASE\n", encoding="utf-8")
        (folder / f"config_{topology}.py").write_text(text, encoding="utf-8")
        return topology


def run(job: Job, vendor: str, chip: str, out: Path, *more: str, **variables: str) -> Record:
    """The record of ``job`` on ``chip``; the device is emulated with ``variables``."""
    topology = job.on(vendor, chip, out / "case")
    done = subprocess.run(
        [
            sys.executable, "-m", "core.run", str(out / "case"), "--config", topology, "--out", str(out / "runs"),
            "--json", *more,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"PYTHONPATH": python_path()} | variables,
    )  # fmt: skip
    assert done.stdout, done.stderr
    (told,) = json.loads(done.stdout)
    return Record.model_validate_json(json.dumps(told))
