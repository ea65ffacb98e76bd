"""A case's real config, scaled down, as a run through the command line: on an emulated device, or on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from schemas.record import Record
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
SMALL: Mapping[str, object] = {
    "model.hidden_size": 64, "model.intermediate_size": 96, "model.num_layers": 2, "model.num_heads": 4,
    "model.num_kv_heads": 4, "model.vocab_size": 512, "sequence_length": 64, "local_batch_size": 2,
    "gradient_accumulation_steps": 2, "learning_rate": 2e-3, "measure.warmup_steps": 1, "measure.steps": 3,
    "measure.min_window_s": 0, "data.generated_sequences": 64,
}  # fmt: skip
CONFIG = """
from cases.{case}.config_{config} import CONFIG as REAL

from schemas.case import HardwareConfig

CONFIG = HardwareConfig.model_validate(REAL.model_dump() | {{"vendor": {vendor!r}, "topology": {topology!r}}})
"""


@dataclass(frozen=True)
class Job:
    """Runs of one config of a case in this repository, on as many chips as there are ``ranks``."""

    case: str
    config: str
    ranks: int = 2
    run: str | None = None
    """One of the config's runs; None: all of them."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """What makes it small, besides ``SMALL``; engine, ZeRO stage, attention and checkpointing stay."""

    def options(self, vendor: str, chip: str, folder: Path) -> list[str]:
        """The case and the config, written into ``folder`` for ``vendor``, and the changes."""
        topology = f"{chip}x1x{self.ranks}"
        folder.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(case=self.case, config=self.config, vendor=vendor, topology=topology)
        (folder / "__init__.py").write_text(f"from cases.{self.case} import CASE\n", encoding="utf-8")
        (folder / f"config_{topology}.py").write_text(text, encoding="utf-8")
        one = ["--run", self.run] if self.run else []
        sets = [part for key, value in {**SMALL, **self.changes}.items() for part in ("--set", f"{key}={value}")]
        return [str(folder), "--config", topology, *one, *sets]


def run(job: Job, vendor: str, chip: str, out: Path, *more: str, **variables: str) -> list[Record]:
    """The records of the runs of ``job`` on ``chip``, with ``variables`` set."""
    options = job.options(vendor, chip, out / "case")
    done = subprocess.run(
        [sys.executable, "-m", "core.run", *options, "--out", str(out / "runs"), "--json", *more],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": python_path()} | variables,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return [Record.model_validate_json(json.dumps(told)) for told in json.loads(done.stdout)]


def assert_learns_alike(records: list[Record], on_cpu: list[Record], tolerance: float) -> None:
    """Each run ended well on an emulated device, which its record says, with the losses of the CPU."""
    assert len(records) == len(on_cpu) > 0
    for record, reference in zip(records, on_cpu, strict=True):
        assert (record.status, reference.status) == ("ok", "ok"), (record.reason, reference.reason)
        assert (record.emulated, record.rankable, record.mfu.palm) == (True, False, None)
        assert len(record.loss.curve) >= 4
        assert_close(record.loss.curve, reference.loss.curve, tolerance)
        assert_close(record.loss.grad_norm_curve, reference.loss.grad_norm_curve, 100 * tolerance)


def assert_close(values: tuple[float, ...], expected: tuple[float, ...], tolerance: float) -> None:
    """Within ``tolerance``, relative."""
    assert len(values) == len(expected)
    errors = [abs(value - right) / abs(right) for value, right in zip(values, expected, strict=True)]
    assert max(errors, default=0) <= tolerance, (values, expected)  # a run that clips nothing has no norms
