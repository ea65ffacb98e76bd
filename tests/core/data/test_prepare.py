"""``prepare``: every input kind, the token file's layout, determinism, and each user error."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")
pytest.importorskip("sentencepiece")

import numpy as np

from core.data.corpus import documents
from core.data.manifest import MANIFEST_FILE, TOKEN_FILE, Manifest, file_sha256
from core.data.prepare import prepare
from core.data.tokenizer import load
from core.errors import UsageError

TEXTS = list(itertools.islice(documents(11), 12))


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"url": "x", "text": text}) + "\n" for text in texts).encode()


def _tar(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _texts_tar(texts: list[str]) -> bytes:
    members = {f"{number:05d}.txt": text.encode() for number, text in enumerate(texts)}
    return _tar({"README.md": b"not a document", **members})


def _prepare(inputs: list[Path], tokenizer: Path, out: Path, **options: Any) -> Manifest:
    return prepare(inputs, tokenizer, out, **{"name": "test", "add_bos": True, "add_eos": True, **options})


def _documents(folder: Path, tokenizer: Path) -> list[str]:
    """The texts back from a token file with BOS and EOS."""
    manifest = Manifest.read(folder)
    tokens = np.fromfile(folder / TOKEN_FILE, dtype="<u2" if manifest.dtype == "uint16" else "<u4").tolist()
    decoded, document = [], []
    for token in tokens:
        document.append(token)
        if token == manifest.eos_id:
            assert document[0] == manifest.bos_id
            decoded.append(load(tokenizer).processor.decode(document[1:-1]))
            document = []
    assert not document
    return decoded


CONTENTS = {
    "a.jsonl": _jsonl(TEXTS) + b"\n",
    "a.jsonl.gz": gzip.compress(_jsonl(TEXTS)),
    "a.tar": _texts_tar(TEXTS),
    "a.tar.xz": lzma.compress(_texts_tar(TEXTS)),
    "urlsf_subset00-1_data.xz": lzma.compress(_texts_tar(TEXTS)),
    "openwebtext.tar.xz": lzma.compress(
        _tar(
            {
                f"openwebtext/urlsf_subset00-{part}_data.xz": lzma.compress(
                    _texts_tar(TEXTS[6 * part : 6 * part + 6])
                )
                for part in range(2)
            }
        )
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_gives_the_same_tokens(tokenizer_file: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENTS[name])
    manifest = _prepare([tmp_path / name], tokenizer_file, tmp_path / "out")
    assert _documents(tmp_path / "out", tokenizer_file) == TEXTS
    assert manifest == Manifest.read(tmp_path / "out")
    assert manifest.documents == len(TEXTS)
    assert (manifest.name, manifest.generated, manifest.dtype) == ("test", False, "uint16")
    assert manifest.vocab_size == 400
    assert manifest.tokenizer_sha256 == file_sha256(tokenizer_file)
    assert manifest.sources[0].model_dump() == {
        "file": name,
        "size_bytes": len(CONTENTS[name]),
        "sha256": file_sha256(tmp_path / name),
    }
    manifest.verify(tmp_path / "out")


def test_txt_files_are_a_document_each(tokenizer_file: Path, tmp_path: Path) -> None:
    for number in (1, 0, 2):
        (tmp_path / f"{number}.txt").write_text(TEXTS[number] + "\n\nGröße 中文", encoding="utf-8")
    _prepare([tmp_path], tokenizer_file, tmp_path / "out")
    assert _documents(tmp_path / "out", tokenizer_file) == [text + "\n\nGröße 中文" for text in TEXTS[:3]]


@pytest.mark.parametrize(("add_bos", "add_eos"), [(False, False), (False, True), (True, False), (True, True)])
def test_bos_and_eos(tokenizer_file: Path, tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    manifest = _prepare([tmp_path], tokenizer_file, tmp_path / "out", add_bos=add_bos, add_eos=add_eos)
    assert manifest.bos_id == (1 if add_bos else None)
    assert manifest.eos_id == (2 if add_eos else None)
    expected: list[int] = []
    for ids in load(tokenizer_file).encode_batch(TEXTS):
        expected += [1] * add_bos + ids + [2] * add_eos
    assert np.fromfile(tmp_path / "out" / TOKEN_FILE, dtype="<u2").tolist() == expected
    assert manifest.tokens == len(expected)


def test_large_vocabulary_takes_four_bytes(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    large = dataclasses.replace(load(tokenizer_file), vocab_size=65537)
    monkeypatch.setattr("core.data.prepare.load", lambda path: large)
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    manifest = _prepare([tmp_path], tokenizer_file, tmp_path / "out")
    assert manifest.dtype == "uint32"
    assert (tmp_path / "out" / TOKEN_FILE).stat().st_size == 4 * manifest.tokens
    assert _documents(tmp_path / "out", tokenizer_file) == TEXTS


def test_order_and_place_of_inputs_do_not_matter(tokenizer_file: Path, tmp_path: Path) -> None:
    manifests = []
    for place, order in (("here", (0, 1, 2)), ("there", (2, 0, 1))):
        root = tmp_path / place
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "b.txt").write_text(TEXTS[0])
        (root / "c.jsonl").write_bytes(_jsonl(TEXTS[1:3]))
        (root / "a.tar").write_bytes(_texts_tar(TEXTS[3:5]))
        (root / "notes.md").write_text("no text of the data set")
        inputs = [root, root / "sub", root / "a.tar"]
        manifests.append(_prepare([inputs[i] for i in order], tokenizer_file, root / "out"))
    assert manifests[0] == manifests[1]
    assert manifests[0].sha256() == manifests[1].sha256()
    assert manifests[0].documents == 5
    assert len(manifests[0].sources) == 3


def test_batches_do_not_show_in_the_tokens(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    whole = _prepare([tmp_path / "a.jsonl"], tokenizer_file, tmp_path / "whole")
    monkeypatch.setattr("core.data.prepare._BATCH_LETTERS", 1)
    calls: list[tuple[int, int, int, float]] = []
    split = _prepare(
        [tmp_path / "a.jsonl"], tokenizer_file, tmp_path / "split", progress=lambda *facts: calls.append(facts)
    )
    assert split == whole
    size = (tmp_path / "a.jsonl").stat().st_size
    assert len(calls) == len(TEXTS)
    assert calls == sorted(calls)
    assert all(done <= total == size and seconds >= 0 for done, total, _, seconds in calls)
    assert calls[-1][::2][:2] == (size, whole.tokens)


def test_empty_texts_are_dropped(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(["", " \n", TEXTS[0]]))
    assert _prepare([tmp_path], tokenizer_file, tmp_path / "out").documents == 1


def test_same_data_set_is_checked_and_kept(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    first = _prepare([tmp_path / "a.jsonl"], tokenizer_file, tmp_path / "out")
    written = (tmp_path / "out" / TOKEN_FILE).stat().st_mtime_ns
    assert _prepare([tmp_path / "a.jsonl"], tokenizer_file, tmp_path / "out") == first
    assert (tmp_path / "out" / TOKEN_FILE).stat().st_mtime_ns == written
    (tmp_path / "out" / TOKEN_FILE).write_bytes(b"\0" * 2 * first.tokens)
    with pytest.raises(UsageError, match="corrupt"):
        _prepare([tmp_path / "a.jsonl"], tokenizer_file, tmp_path / "out")


@pytest.mark.parametrize("change", [{"name": "other"}, {"add_eos": False}, {"inputs": "b.jsonl"}])
def test_folder_of_another_data_set_is_refused(
    tokenizer_file: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    (tmp_path / "b.jsonl").write_bytes(_jsonl(TEXTS[1:]))
    first = _prepare([tmp_path / "a.jsonl"], tokenizer_file, tmp_path / "out")
    with pytest.raises(UsageError, match="already holds the data set 'test'"):
        _prepare([tmp_path / change.pop("inputs", "a.jsonl")], tokenizer_file, tmp_path / "out", **change)
    first.verify(tmp_path / "out")
    assert Manifest.read(tmp_path / "out") == first


BAD = {
    "syntax": ("a.jsonl", _jsonl(TEXTS[:1]) + b'{"text": \n', r"a\.jsonl:2: not valid JSON"),
    "bytes": ("a.jsonl", b'{"text": "\xff\xfe"}\n', r"a\.jsonl:1: not valid JSON"),
    "no field": ("a.jsonl", b'\n{"content": "x"}\n', r'a\.jsonl:2: no field "text"'),
    "field type": ("a.jsonl", b'{"text": 3}\n', r'a\.jsonl:1: no field "text" that holds a string'),
    "no object": ("a.jsonl", b'["text"]\n', r'a\.jsonl:1: no field "text"'),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: the text holds half a surrogate"),
    "gz line": ("a.jsonl.gz", gzip.compress(b"nothing\n"), r"a\.jsonl\.gz:1: not valid JSON"),
    "gz cut": ("a.jsonl.gz", CONTENTS["a.jsonl.gz"][:-100], r"a\.jsonl\.gz cannot be read: Compressed file ended"),
    "gz none": ("a.jsonl.gz", _jsonl(TEXTS), r"a\.jsonl\.gz cannot be read: Not a gzipped file"),
    "gz bits": ("a.jsonl.gz", CONTENTS["a.jsonl.gz"][:20] + b"\xff" * 99, r"a\.jsonl\.gz cannot be read: "),
    "xz cut": ("a.tar.xz", CONTENTS["a.tar.xz"][:-50], r"a\.tar\.xz cannot be read: Compressed file ended"),
    "xz none": ("a.xz", CONTENTS["a.tar"], r"a\.xz cannot be read: "),
    "xz no tar": ("a.jsonl.xz", lzma.compress(_jsonl(TEXTS)), r"a\.jsonl\.xz cannot be read: "),
    "tar cut": ("a.tar", CONTENTS["a.tar"][:4096], r"a\.tar cannot be read: unexpected end of data"),
    "tar end": (
        "a.tar",
        _tar({"x.txt": b"x" * 512}).rstrip(b"\0"),
        r"a\.tar cannot be read: the end of the archive",
    ),
    "tar text": ("a.tar", _tar({"x.txt": b"\xff"}), r"a\.tar:x\.txt: not UTF-8"),
    "txt": ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8"),
    "no text": ("a.jsonl", b"\n \n", r"no text in .*a\.jsonl"),
    "no member": ("a.tar", _tar({"x.html": b"text"}), r"no text in .*a\.tar"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_its_place_and_leaves_nothing(tokenizer_file: Path, tmp_path: Path, case: str) -> None:
    name, content, said = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        _prepare([tmp_path / name], tokenizer_file, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_link_in_an_archive_is_passed_over(tokenizer_file: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        text = tarfile.TarInfo("text.txt")
        text.size = len(TEXTS[0])
        archive.addfile(text, io.BytesIO(TEXTS[0].encode()))
    _prepare([tmp_path / "a.tar"], tokenizer_file, tmp_path / "out")
    assert _documents(tmp_path / "out", tokenizer_file) == [TEXTS[0]]


def test_unknown_kind(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"a\.parquet is of unknown kind") as caught:
        _prepare([tmp_path / "a.parquet"], tokenizer_file, tmp_path / "out")
    assert ".jsonl.gz" in caught.value.fix


def test_missing_input(tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"input .*none\.jsonl does not exist"):
        _prepare([tmp_path / "none.jsonl"], tokenizer_file, tmp_path / "out")


def test_folder_without_inputs(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=rf"no input files found in {tmp_path}"):
        _prepare([tmp_path], tokenizer_file, tmp_path / "out")
    with pytest.raises(UsageError, match=r"no input files found in \(none given\)"):
        _prepare([], tokenizer_file, tmp_path / "out")


def test_bad_name_is_refused_before_the_work(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    with pytest.raises(UsageError, match=r"data set: name: .*'my data'"):
        _prepare([tmp_path], tokenizer_file, tmp_path / "out", name="my data")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("piece", ["bos", "eos"])
def test_tokenizer_without_the_piece(tmp_path: Path, piece: str) -> None:
    import sentencepiece

    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "bare"),
        vocab_size=100,
        model_type="bpe",
        minloglevel=2,
        **{f"{piece}_id": -1},
    )
    with pytest.raises(UsageError, match=rf"bare\.model has no {piece.upper()} piece"):
        _prepare([tmp_path / "a.jsonl"], tmp_path / "bare.model", tmp_path / "out")


def test_broken_manifest_in_the_folder(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_FILE).write_text("{}")
    with pytest.raises(UsageError, match=r"manifest\.json: name: this field is missing"):
        _prepare([tmp_path / "a.jsonl"], tokenizer_file, tmp_path / "out")
