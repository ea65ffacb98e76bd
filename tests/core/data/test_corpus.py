"""The generated corpus: the same bytes everywhere, valid JSON lines, learnable."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from core.data.corpus import documents, write_corpus


def test_bytes_are_pinned(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.jsonl", 0, 200_000)
    found = hashlib.sha256((tmp_path / "c.jsonl").read_bytes()).hexdigest()
    pinned = "8f9f60f039485171d9711bac0de6ffd3ec3273809e923369c6e5648ff148c97e"
    assert found == pinned, "the grammar changed: raise CORPUS_VERSION, then pin the new hash here"


def test_lines_are_json_of_the_documents(tmp_path: Path) -> None:
    size = write_corpus(tmp_path / "c.jsonl", 3, 50_000)
    content = (tmp_path / "c.jsonl").read_bytes()
    texts = [json.loads(line) for line in content.splitlines()]
    assert len(content) == size >= 50_000
    assert size - len(content.splitlines(keepends=True)[-1]) < 50_000
    assert texts == [{"text": text} for text in itertools.islice(documents(3), len(texts))]
    assert content.splitlines()[0].decode() == json.dumps(texts[0])


def test_shorter_is_a_prefix_of_longer(tmp_path: Path) -> None:
    write_corpus(tmp_path / "short", 1, 1000)
    write_corpus(tmp_path / "long", 1, 100_000)
    short, long = (tmp_path / "short").read_bytes(), (tmp_path / "long").read_bytes()
    assert long.startswith(short)
    assert len(long) > len(short)


def test_seeds_differ_and_nothing_repeats() -> None:
    first, second = (list(itertools.islice(documents(seed), 2000)) for seed in (0, 1))
    assert not set(first) & set(second)
    assert len(set(first)) == len(first)


def test_text_reads_like_sentences() -> None:
    for text in itertools.islice(documents(5), 200):
        sentences = text.removesuffix(".").split(". ")
        assert 6 <= len(sentences) <= 29
        assert all(sentence[0].isupper() and len(sentence.split()) >= 5 for sentence in sentences)
        assert not set(text) & set('"\\@_')


def test_every_document_keeps_to_one_person() -> None:
    names = {"Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas", "Karin", "Leo"}
    for text in itertools.islice(documents(6), 200):
        assert len(names & set(text.replace(".", "").split())) <= 1


def test_next_token_is_far_easier_than_a_random_one(tokenizer_file: Path) -> None:
    np = pytest.importorskip("numpy")
    from core.data.tokenizer import load

    tokenizer = load(tokenizer_file)
    ids = np.concatenate(tokenizer.encode_batch(list(itertools.islice(documents(9), 600))))
    vocab = tokenizer.vocab_size
    pairs = np.bincount(ids[:-1] * vocab + ids[1:], minlength=vocab * vocab).reshape(vocab, vocab) / (len(ids) - 1)

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    unigram = entropy(pairs.sum(axis=1))
    conditional = entropy(pairs) - unigram
    # A model starts at log(vocab) = 6.0; a reference curve must fall by a fifth at least.
    assert unigram < 0.85 * np.log(vocab)
    assert conditional < 0.6 * unigram
    assert conditional > 1.0
