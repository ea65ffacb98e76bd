"""Data sets that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentencepiece")
    from core.data.corpus import write_corpus
    from core.data.tokenizer import train_sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    write_corpus(folder / "corpus.jsonl", 0, 100_000)
    train_sentencepiece(folder / "corpus.jsonl", folder / "tokenizer.model", 400)
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes a data set of the tokens 0, 1, 2, ...: a token tells where it stands."""
    np = pytest.importorskip("numpy")
    from core.data.manifest import TOKEN_FILE, Manifest, Source, file_sha256

    def make(tokens: int) -> Path:
        folder: Path = tmp_path_factory.mktemp("tokens")
        np.arange(tokens, dtype="<u4").tofile(folder / TOKEN_FILE)
        Manifest(
            name="counting",
            generated=False,
            tokens=tokens,
            documents=1,
            dtype="uint32",
            token_sha256=file_sha256(folder / TOKEN_FILE),
            vocab_size=tokens,
            bos_id=None,
            eos_id=None,
            tokenizer_sha256="0" * 64,
            sources=(Source(file="none.txt", size_bytes=0, sha256="0" * 64),),
        ).write(folder)
        return folder

    return make
