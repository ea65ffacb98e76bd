"""A run that is cut in two trains as one that is not: data, learning rate, weights and moments go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from core.record import read_record
from schemas.record import Record
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
SETS = (
    "model.hidden_size=32", "model.intermediate_size=48", "sequence_length=32", "measure.warmup_steps=2",
    "schedule=cosine", "schedule_steps=20", "lr_warmup_steps=6",
)  # fmt: skip
"""The learning rate changes with every step."""


def run(folder: Path, name: str, steps: int, **checkpoint: Path) -> Record:
    """One CPU worker; ``steps`` with the warm-up."""
    sets = [*SETS, f"measure.steps={steps - 2}", *(f"checkpoint.{key}={path}" for key, path in checkpoint.items())]
    command = [sys.executable, "-m", "core.run", "cases/llama2_7b", "--config", "CPUx1x1", "--run", "reference"]
    done = subprocess.run(
        [*command, *(part for value in sets for part in ("--set", value)), "--out", str(folder / name)],
        cwd=ROOT, env=os.environ | {"ACCELMARK_CACHE": str(folder / "cache"), "PYTHONPATH": python_path()},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if "save" in checkpoint:
        assert f"checkpoint saved: {checkpoint['save']}, step {steps}\n" in done.stderr
    (record,) = (folder / name).glob("*/record.json")
    return read_record(record)


def test_a_run_that_is_cut_in_two_trains_as_one(tmp_path: Path) -> None:
    whole = run(tmp_path, "whole", 9)
    first = run(tmp_path, "first", 5, save=tmp_path / "saved")
    second = run(tmp_path, "second", 4, load=tmp_path / "saved")
    assert first.loss.curve + second.loss.curve == pytest.approx(whole.loss.curve, rel=1e-6)
    assert first.loss.grad_norm_curve + second.loss.grad_norm_curve == pytest.approx(whole.loss.grad_norm_curve)
    assert (second.loss.first_step, second.epochs) == (6, whole.epochs)
    assert second.weights == "random"
    assert second.weights_sha256 != first.weights_sha256
