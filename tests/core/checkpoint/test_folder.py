"""What a checkpoint's folder says about itself, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.checkpoint import folder as folders
from core.errors import UsageError
from schemas.checkpoint import Checkpoint
from schemas.plan import Plan

DATA = "da" * 32


@pytest.fixture
def make_checkpoint(make_plan: Callable[..., Plan]) -> Callable[..., Checkpoint]:
    def make(**changes: Any) -> Checkpoint:
        values: dict[str, Any] = {
            "step": 5, "updates": 5, "loss_scale": None, "weights": "pretrained", "data_manifest_sha256": DATA,
            "parts": ("weights", "exp_avg", "exp_avg_sq"), "plan": make_plan(),
        }  # fmt: skip
        return Checkpoint.model_validate(values | changes)

    return make


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Checkpoint]) -> Path:
    """A whole one, without tensors."""
    (tmp_path / folders.MANIFEST).write_text(make_checkpoint().model_dump_json(), encoding="utf-8")
    return tmp_path


def test_what_is_written_is_read(folder: Path, make_checkpoint: Callable[..., Checkpoint]) -> None:
    assert folders.read(folder) == make_checkpoint()


def test_a_folder_without_its_manifest_is_no_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match=r"holds no whole checkpoint: checkpoint\.json: No such file") as error:
        folders.read(tmp_path)
    assert "--set weights=DIR" in error.value.fix


def test_a_manifest_that_was_edited(folder: Path) -> None:
    text = (folder / folders.MANIFEST).read_text(encoding="utf-8")
    (folder / folders.MANIFEST).write_text(text.replace('"step":5', '"step":0'), encoding="utf-8")
    with pytest.raises(UsageError, match=r"checkpoint\.json: step: .*greater than 0 \(got 0\)"):
        folders.read(folder)


def test_the_weights_with_the_most_digits_are_the_main_weights(folder: Path) -> None:
    assert folders.exact_weights(folder) == folder
    (folder / "main_weights").mkdir()
    assert folders.exact_weights(folder) == folder / "main_weights"


def test_a_run_inherits_what_training_began_with(folder: Path, make_plan: Callable[..., Plan]) -> None:
    assert folders.began_with(make_plan()) == "random"
    assert folders.began_with(make_plan(sets={"weights": "somewhere"})) == "pretrained"
    assert folders.began_with(make_plan(sets={"checkpoint.load": str(folder)})) == "pretrained"


def test_another_layout_engine_precision_and_rate_may_go_on(
    tmp_path: Path, make_checkpoint: Callable[..., Checkpoint], make_plan: Callable[..., Plan]
) -> None:
    sets = {"zero_stage": 0, "learning_rate": 1e-3, "precision": "fp32"}
    sets |= {"local_batch_size": 8, "gradient_accumulation_steps": 1}  # the same 128 sequences
    folders.require_same(make_checkpoint(), tmp_path, make_plan(engine="torch", sets=sets), DATA)


@pytest.mark.parametrize(
    ("sets", "data", "reason"),
    [
        ({"model.num_layers": 2}, DATA, "model.num_layers 2 instead of 4"),
        ({"model.factory": "m:g"}, DATA, "model.factory m:g instead of m:f"),
        ({}, "ab" * 32, "data with manifest abababababab instead of dadadadadada"),
        ({"seed": 7}, DATA, "seed 7 instead of 1234"),
        ({"stage": "pretrain"}, DATA, "stage pretrain instead of None"),
        ({"sequence_length": 1024}, DATA, "sequence_length 1024 instead of 2048"),
        ({"local_batch_size": 2}, DATA, "global_batch_size 256 instead of 128"),
    ],
)
def test_another_run_is_refused(  # noqa: PLR0917 - the table's columns
    sets: dict[str, Any],
    data: str,
    reason: str,
    tmp_path: Path,
    make_checkpoint: Callable[..., Checkpoint],
    make_plan: Callable[..., Plan],
) -> None:
    with pytest.raises(UsageError) as error:
        folders.require_same(make_checkpoint(), tmp_path, make_plan(sets=sets), data)
    assert error.value.what == f"the checkpoint {tmp_path} (step 5) is of another run: {reason}"


def test_a_folder_to_save_into_must_be_new(tmp_path: Path) -> None:
    folders.require_new(tmp_path / "runs" / "a")
    assert not (tmp_path / "runs" / "a").exists()
    (tmp_path / "runs" / "a.partial").mkdir()
    with pytest.raises(UsageError, match=r"a\.partial is there already"):
        folders.require_new(tmp_path / "runs" / "a")
    with pytest.raises(UsageError, match="is there already") as error:
        folders.require_new(tmp_path / "runs")
    assert "choose one with --run" in error.value.fix


def test_a_place_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/a cannot be written: "):
        folders.require_new(tmp_path / "file" / "a")
    monkeypatch.setattr(folders.os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="b cannot be written: permission denied"):
        folders.require_new(tmp_path / "b")
