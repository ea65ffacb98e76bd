"""Tokenize text files into a token file that the reader maps into memory."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import ValidationError

from core.data.manifest import MANIFEST_FILE, TOKEN_FILE, Manifest, replacing
from core.data.texts import Input, find_inputs, read_documents
from core.data.tokenizer import Tokenizer, load
from core.errors import UsageError
from schemas.base import explain

Progress = Callable[[int, int, int, float], None]
"""Called after each batch: input bytes done, input bytes in all, tokens written, seconds since the start."""

_BATCH_LETTERS = 1 << 22


def prepare(  # noqa: PLR0913 - one parameter for each option of the command
    inputs: Sequence[Path],
    tokenizer_path: Path,
    out: Path,
    *,
    name: str,
    add_bos: bool,
    add_eos: bool,
    progress: Progress | None = None,
    generated: bool = False,
) -> Manifest:
    """Tokenize all documents of ``inputs`` and write token file and manifest into the folder ``out``.

    Inputs are files or folders (searched at any depth) of JSON lines with a field ``text`` (``.jsonl``,
    ``.jsonl.gz``), of texts that are a document each (``.txt``), and of archives of such texts (``.tar``,
    ``.tar.xz``, OpenWebText's ``urlsf_subset*_data.xz``). The same inputs give the same hashes in whatever order
    they are named. A folder that holds this very data set is checked and left as it is.

    Raises ``UsageError`` for inputs that are missing, unknown, unreadable or empty, for a tokenizer that does not
    load or lacks the piece to add, for a bad name, and for a folder that holds another data set.
    """
    started = time.monotonic()
    tokenizer = load(tokenizer_path)
    files = find_inputs(inputs)
    facts: dict[str, Any] = {
        "name": name,
        "generated": generated,
        **_vocabulary(tokenizer, tokenizer_path, add_bos=add_bos, add_eos=add_eos),
        "sources": tuple(one.source for one in files),
    }
    _check_name(facts)
    if (out / MANIFEST_FILE).exists():
        return _same(out, facts)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / TOKEN_FILE) as file:
        writer = _Writer(file, tokenizer, facts)
        _write_all(files, writer, progress, started)
        if not writer.tokens:
            raise UsageError(f"no text in {', '.join(str(one) for one in inputs)}", "give files that hold text")
    manifest = Manifest(
        **facts, tokens=writer.tokens, documents=writer.documents, token_sha256=writer.digest.hexdigest()
    )
    manifest.write(out)
    return manifest


class _Writer:
    """Appends documents to the token file and keeps count and hash."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
        self._file, self._tokenizer = file, tokenizer
        self._dtype = np.dtype(facts["dtype"]).newbyteorder("<")
        self._bos = [] if facts["bos_id"] is None else [facts["bos_id"]]
        self._eos = [] if facts["eos_id"] is None else [facts["eos_id"]]
        self.tokens = 0
        self.documents = 0
        self.digest = hashlib.sha256()

    def add(self, texts: Sequence[str]) -> None:
        documents = (self._bos + ids + self._eos for ids in self._tokenizer.encode_batch(texts))
        tokens = np.fromiter(itertools.chain.from_iterable(documents), dtype=self._dtype)
        content = tokens.tobytes()
        self._file.write(content)
        self.digest.update(content)
        self.tokens += len(tokens)
        self.documents += len(texts)


def _write_all(files: Sequence[Input], writer: _Writer, progress: Progress | None, started: float) -> None:
    total = sum(one.source.size_bytes for one in files)
    done = 0
    for path, source in files:
        with path.open("rb") as raw:
            for texts in _batches(read_documents(path, raw)):
                writer.add(texts)
                if progress:
                    progress(done + raw.tell(), total, writer.tokens, time.monotonic() - started)
        done += source.size_bytes


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    letters = 0
    for text in texts:
        batch.append(text)
        letters += len(text)
        if letters >= _BATCH_LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch


def _vocabulary(tokenizer: Tokenizer, path: Path, *, add_bos: bool, add_eos: bool) -> dict[str, Any]:
    """The manifest's fields that say what the ids mean, and how wide they are."""
    return {
        "dtype": "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
        "vocab_size": tokenizer.vocab_size,
        "bos_id": _piece(tokenizer.bos_id, "BOS", path) if add_bos else None,
        "eos_id": _piece(tokenizer.eos_id, "EOS", path) if add_eos else None,
        "tokenizer_sha256": tokenizer.sha256,
    }


def _piece(piece: int | None, kind: str, tokenizer_path: Path) -> int:
    if piece is None:
        raise UsageError(f"tokenizer {tokenizer_path} has no {kind} piece", f"prepare without adding {kind}")
    return piece


def _check_name(facts: dict[str, Any]) -> None:
    """A bad name must show before an hour of tokenizing, not after it."""
    try:
        Manifest(**facts, tokens=1, documents=1, token_sha256="0" * 64)
    except ValidationError as error:
        raise UsageError(
            explain(error, "data set"), "choose a name of letters, digits, '.', '_' and '-'"
        ) from None


def _same(out: Path, facts: dict[str, Any]) -> Manifest:
    manifest = Manifest.read(out)
    if any(getattr(manifest, field) != value for field, value in facts.items()):
        raise UsageError(
            f"{out} already holds the data set {manifest.name!r}, made with other inputs or settings",
            "choose another folder, or remove this one",
        )
    manifest.verify(out)
    return manifest
