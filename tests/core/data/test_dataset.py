"""Opening the data of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("sentencepiece")

from core.data.dataset import data_folder, open_data
from core.errors import UsageError
from schemas.base import Text
from schemas.case import DataSpec
from schemas.hyperparameters import HyperParameters

Make = Callable[[int], Path]


def _data(path: Path | None, sequences: int = 64) -> DataSpec:
    return DataSpec(
        name="test",
        description=Text(zh="测试", en="test"),
        source="none",
        path=None if path is None else str(path),
        generated_sequences=sequences,
    )


def _hyper_parameters(gas: int = 2) -> HyperParameters:
    return HyperParameters(
        precision="fp32",
        local_batch_size=2,
        sequence_length=16,
        gradient_accumulation_steps=gas,
        learning_rate=1e-3,
        seed=5,
    )


def test_prepared_folder(token_folder: Make) -> None:
    folder = token_folder(1601)
    reader = open_data(_data(folder), _hyper_parameters(), 2000, rank=1, world_size=2, verify=True)
    assert reader.manifest.name == "counting"
    assert reader.sequences == 100
    assert reader.steps_per_epoch(2) == 12
    assert reader.batch(0, 0, 2).arrays["input_ids"].shape == (2, 16)


def test_home_folder_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert data_folder(_data(Path("~/set")), 16, 512) == Path("/home/me/set")


def test_without_a_folder_it_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELMARK_CACHE", str(tmp_path))
    reader = open_data(_data(None, 64), _hyper_parameters(), 512, rank=0, world_size=1, verify=True)
    assert reader.manifest.generated
    assert reader.sequences >= 64
    assert data_folder(_data(None, 64), 16, 512).parent == tmp_path


def test_vocabulary_larger_than_the_models(token_folder: Make) -> None:
    folder = token_folder(1601)
    with pytest.raises(UsageError, match="'counting' has a vocabulary of 1601, the model one of 1600"):
        open_data(_data(folder), _hyper_parameters(), 1600, rank=0, world_size=1, verify=False)


def test_batch_larger_than_the_data(token_folder: Make) -> None:
    folder = token_folder(1601)
    with pytest.raises(UsageError, match="one global batch needs 102"):
        open_data(_data(folder), _hyper_parameters(gas=51), 2000, rank=0, world_size=1, verify=False)
