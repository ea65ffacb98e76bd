"""The manifest: round trip, clear errors, corruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.data.manifest import MANIFEST_FILE, TOKEN_FILE, Manifest, file_sha256, replacing
from core.errors import UsageError

Make = Callable[[int], Path]


def _edit(folder: Path, **fields: object) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_round_trip_and_hash(token_folder: Make, tmp_path: Path) -> None:
    manifest = Manifest.read(token_folder(100))
    manifest.write(tmp_path)
    again = Manifest.read(tmp_path)
    assert again == manifest
    assert again.sha256() == manifest.sha256()
    assert manifest.model_copy(update={"name": "other"}).sha256() != manifest.sha256()
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_FILE]


def test_hash_ignores_key_order_and_spaces(token_folder: Make) -> None:
    folder = token_folder(10)
    before = Manifest.read(folder).sha256()
    fields = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(dict(reversed(fields.items())), indent=7))
    assert Manifest.read(folder).sha256() == before


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{tmp_path} holds no prepared data set") as caught:
        Manifest.read(tmp_path)
    assert "accelmark prepare" in caught.value.fix


def test_unreadable_manifest(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).mkdir()
    with pytest.raises(UsageError, match=r"manifest\.json cannot be read: Is a directory"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokens": "many"}, r"manifest\.json: tokens: .*'many'"),
        ({"tokens": 0}, r"manifest\.json: tokens: "),
        ({"dtype": "int8"}, r"manifest\.json: dtype: .*'int8'"),
        ({"tokenz": 3}, r"manifest\.json: tokenz: unknown field"),
        ({"token_file": "../tokens.bin"}, r"manifest\.json: token_file: "),
        ({"schema_version": 2}, r"manifest\.json: schema_version: "),
    ],
)
def test_wrong_field_is_named(token_folder: Make, fields: dict[str, object], said: str) -> None:
    folder = token_folder(10)
    _edit(folder, **fields)
    with pytest.raises(UsageError, match=said):
        Manifest.read(folder)


def test_broken_json_is_named(token_folder: Make) -> None:
    folder = token_folder(10)
    (folder / MANIFEST_FILE).write_text('{"name": ')
    with pytest.raises(UsageError, match=r"manifest\.json: .*Invalid JSON"):
        Manifest.read(folder)


def test_verify_accepts_what_was_written(token_folder: Make) -> None:
    folder = token_folder(1000)
    Manifest.read(folder).verify(folder)


def test_one_flipped_bit_is_found(token_folder: Make) -> None:
    folder = token_folder(1000)
    content = bytearray((folder / TOKEN_FILE).read_bytes())
    content[2000] ^= 1
    (folder / TOKEN_FILE).write_bytes(content)
    manifest = Manifest.read(folder)
    manifest.verify_size(folder)
    with pytest.raises(UsageError, match="is corrupt: its sha256 is") as caught:
        manifest.verify(folder)
    assert caught.value.fix == f"remove {folder}; prepare it again"


def test_generated_data_is_generated_again(token_folder: Make) -> None:
    folder = token_folder(10)
    _edit(folder, generated=True)
    (folder / TOKEN_FILE).write_bytes(b"short")
    with pytest.raises(UsageError, match="has 5 bytes, its manifest says 40") as caught:
        Manifest.read(folder).verify(folder)
    assert caught.value.fix == f"remove {folder}; the next run generates it again"


def test_missing_token_file(token_folder: Make) -> None:
    folder = token_folder(10)
    (folder / TOKEN_FILE).unlink()
    with pytest.raises(UsageError, match=r"tokens\.bin is missing"):
        Manifest.read(folder).verify_size(folder)


def test_name_must_be_safe(token_folder: Make) -> None:
    fields = Manifest.read(token_folder(10)).model_dump()
    with pytest.raises(ValidationError, match="name"):
        Manifest(**{**fields, "name": "a/b"})


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail() -> None:
        with replacing(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_bytes() == b"old"
    with replacing(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_file_sha256_is_the_standard_one(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
