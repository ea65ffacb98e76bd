"""Dialogues generated from a seed, in samsum's layout: two people say the sentences of a small document."""

from __future__ import annotations

import json
from pathlib import Path

from core.data.corpus import documents
from core.data.embedded import BYTES_PER_TOKEN, folder_key, make_folder

_VERSION = 1
"""Of the way they are made; raised whenever the same seed gives others."""
_SEED = 1
"""Other than the tokenizer's, so that dialogues are not what it was trained on."""
_FILE = "train.json"
_SPEAKERS = ("Amanda", "Jerry")
_LINES = 8


def generated_dialogues(cache: Path, *, sequences: int, sequence_length: int) -> Path:
    """The folder with ``train.json``: dialogues that fill about ``sequences`` of ``sequence_length`` tokens."""
    size_bytes = int(BYTES_PER_TOKEN * sequences * sequence_length)
    folder = cache / f"dialogues-{folder_key(_SEED, _VERSION, size_bytes)}"
    if not (folder / _FILE).is_file():
        make_folder(folder, _FILE, lambda scratch: write_dialogues(scratch, size_bytes))
    return folder


def write_dialogues(folder: Path, size_bytes: int) -> None:
    """Write dialogues of up to ``_LINES`` lines until they fill that many bytes.

    The summary is the first sentence, which can be learned: it has to be found and copied.
    """
    records: list[dict[str, str]] = []
    written = 0
    for text in documents(_SEED):
        if written >= size_bytes:
            break
        sentences = [f"{sentence}." for sentence in text.rstrip(".").split(". ")][:_LINES]
        lines = [f"{_SPEAKERS[number % 2]}: {sentence}" for number, sentence in enumerate(sentences)]
        records.append({"id": str(len(records)), "summary": sentences[0], "dialogue": "\r\n".join(lines)})
        written += sum(map(len, lines)) + len(sentences[0])
    (folder / _FILE).write_text(json.dumps(records, indent=0), encoding="utf-8")
