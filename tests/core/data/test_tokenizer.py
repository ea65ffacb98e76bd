"""The SentencePiece tokenizer: deterministic, quiet, Llama's ids, clear errors."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

from core.data.corpus import documents, write_corpus
from core.data.tokenizer import load, train_sentencepiece
from core.errors import UsageError

TEXTS = [
    *itertools.islice(documents(77), 20),
    "two  spaces and   three",
    "new\nline\n\nand\ttab ",
    "2024 Größe, 中文 and 🙂",
    "",
]


def test_training_is_deterministic_and_quiet(
    tokenizer_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_sentencepiece(tokenizer_file.with_name("corpus.jsonl"), tmp_path / "again.model", 400)
    assert (tmp_path / "again.model").read_bytes() == tokenizer_file.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_only_the_beginning_of_the_corpus_counts(tmp_path: Path) -> None:
    models = []
    for size in (300_000, 600_000):
        write_corpus(tmp_path / "c.jsonl", 0, size)
        train_sentencepiece(tmp_path / "c.jsonl", tmp_path / "m.model", 512)
        models.append((tmp_path / "m.model").read_bytes())
    assert models[0] == models[1]


def test_ids_are_in_range_and_decode_to_the_text(tokenizer_file: Path) -> None:
    tokenizer = load(tokenizer_file)
    batch = tokenizer.encode_batch(TEXTS)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (400, 1, 2)
    assert all(0 <= token < 400 for ids in batch for token in ids)
    assert [tokenizer.processor.decode(ids) for ids in batch] == TEXTS
    assert batch == [tokenizer.encode_batch([text])[0] for text in TEXTS]


def test_folder_stands_for_its_tokenizer_model(tokenizer_file: Path) -> None:
    assert load(tokenizer_file.parent).sha256 == load(tokenizer_file).sha256


def test_transformers_gives_the_same_ids(tokenizer_file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaTokenizer.from_pretrained(tokenizer_file.parent)
    ours = load(tokenizer_file)
    expected = [[ours.bos_id, *ids] for ids in ours.encode_batch(TEXTS)]
    assert theirs(TEXTS)["input_ids"] == expected


def test_vocabulary_that_does_not_hold_the_letters(tokenizer_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer of 270 pieces .*smaller than required_chars"):
        train_sentencepiece(tokenizer_file.with_name("corpus.jsonl"), tmp_path / "m.model", 270)
    assert not list(tmp_path.iterdir())


def test_vocabulary_larger_than_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "hello world"}\n' * 10)
    with pytest.raises(UsageError, match=r"no tokenizer of 5000 pieces .*too high"):
        train_sentencepiece(tmp_path / "c.jsonl", tmp_path / "m.model", 5000)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.model cannot be read: No such file"):
        load(tmp_path / "none.model")


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.model cannot be read: No such file"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"model": "bpe"}', b"version https://git-lfs.github.com/spec/v1\n"])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.model").write_bytes(content)
    with pytest.raises(UsageError, match=r"t\.model is not a SentencePiece model"):
        load(tmp_path / "t.model")


def test_package_missing(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UsageError, match="sentencepiece is not installed") as caught:
        load(tokenizer_file)
    assert "pip install" in caught.value.fix
