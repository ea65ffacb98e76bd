"""Dialogues on disk, in LLaVA's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("sentencepiece")
    pytest.importorskip("numpy")
    from core.data.corpus import write_corpus
    from core.data.tokenizer import load, train_sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    write_corpus(folder / "corpus.jsonl", 0, 100_000)
    train_sentencepiece(folder / "corpus.jsonl", folder / "tokenizer.model", 400)
    return load(folder)


def dialogue(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)]


@pytest.fixture
def say() -> Callable[..., list[dict[str, str]]]:
    return dialogue


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes entries as a conversations file."""

    def written(entries: Any) -> Path:
        file = tmp_path / "conversations.json"
        file.write_text(json.dumps(entries), encoding="utf-8")
        return file

    return written


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[str], str]:
    """Draws a small picture of that name beside the conversations."""
    image = pytest.importorskip("PIL.Image")

    def drawn(name: str) -> str:
        image.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / name)
        return name

    return drawn
