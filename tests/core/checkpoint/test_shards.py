"""Files of bounded size, an index over them, and nothing shared between their tensors."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import NoReturn

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors import SafetensorError
from safetensors.torch import load_file

from core.checkpoint import shards
from core.checkpoint.shards import ShardWriter
from core.errors import UsageError
from core.models.initialise import load_safetensors, place_plain

NAMES = ("a.weight", "b.weight", "c.weight")


def fill(folder: Path, shard_bytes: int = 1 << 20) -> dict[str, torch.Tensor]:
    """Three tensors of 16 bytes, views of one buffer as Megatron's parameters are."""
    tensors = dict(zip(NAMES, torch.arange(12, dtype=torch.float32).view(3, 4), strict=True))
    writer = ShardWriter(folder, shard_bytes)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish()
    assert (writer.bytes, writer.dtype) == (48, torch.float32)
    return tensors


def read(folder: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    load_safetensors(found.items(), folder, place_plain)
    return found


@pytest.mark.parametrize(("shard_bytes", "files"), [(1 << 20, 1), (40, 2), (16, 3), (1, 3)])
def test_no_file_is_larger_than_asked_but_for_a_single_tensor(
    shard_bytes: int, files: int, tmp_path: Path
) -> None:
    tensors = fill(tmp_path / "part", shard_bytes)
    found = sorted((tmp_path / "part").glob("*.safetensors"))
    assert len(found) == files
    assert sum(len(load_file(file)) for file in found) == 3
    assert all(torch.equal(value, tensors[name]) for name, value in read(tmp_path / "part", tensors).items())
    if files == 1:
        assert [file.name for file in (tmp_path / "part").iterdir()] == ["model.safetensors"]
    else:
        index = json.loads((tmp_path / "part" / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert index["metadata"] == {"total_size": 48}
        assert list(index["weight_map"]) == list(NAMES)
        assert index["weight_map"]["c.weight"] == f"model-{files:05d}-of-{files:05d}.safetensors"


def test_whoever_may_read_other_files_may_read_these(tmp_path: Path) -> None:
    fill(tmp_path / "part")
    (tmp_path / "other").touch()
    modes = [
        stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "other", tmp_path / "part/model.safetensors")
    ]
    assert modes[0] == modes[1]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        fill(tmp_path / "file" / "part")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left")])
@pytest.mark.parametrize("function", ["save_file", "sync"])
def test_a_full_disk(error: Exception, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(shards, function, full)
    with pytest.raises(UsageError, match=r"cannot be written: .*No space left") as told:
        fill(tmp_path / "part")
    assert "on a disk with room" in told.value.fix


def test_an_index_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: str) -> NoReturn:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(shards, "write_text", full)
    with pytest.raises(UsageError, match="No space left"):
        fill(tmp_path / "part", 16)
