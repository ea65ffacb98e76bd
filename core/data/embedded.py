"""The embedded data: a generated corpus and a tokenizer trained on it, kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from core.data.corpus import CORPUS_VERSION, write_corpus
from core.data.manifest import MANIFEST_FILE
from core.data.prepare import prepare
from core.data.tokenizer import TOKENIZER_FILE, train_sentencepiece, trainer_version
from core.errors import UsageError
from schemas.plan import Plan

TOKENIZER_SEED = 0
"""Of the corpus that the tokenizer of all generated data is trained on."""

GENERATED = "generated"
"""The data set's name in manifests and records."""

CORPUS_FILE = "corpus.jsonl"
_MAX_VOCAB_SIZE = 512
_MIN_VOCAB_SIZE = 320
"""256 bytes, 3 control pieces, the letters of the corpus, and room for some pairs."""
BYTES_PER_TOKEN = 3.6
"""Measured, markup included: 3.48 with 512 pieces, less with fewer; the rest is margin."""
_MIN_CORPUS_BYTES = 1 << 18


def cache_dir() -> Path:
    """``$ACCELMARK_CACHE``, else ``$XDG_CACHE_HOME/accelmark``, else ``~/.cache/accelmark``."""
    own = os.environ.get("ACCELMARK_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "accelmark"


def embedded_data(cache: Path, *, seed: int, sequences: int, sequence_length: int, model_vocab_size: int) -> Path:
    """The folder (corpus, tokenizer, token file, manifest) of the generated data; built when it is not there.

    It holds at least ``sequences`` sequences of ``sequence_length`` tokens plus the last label, and its name
    follows from the parameters. Several processes may ask at once: each builds in a folder of its own and the
    first to finish wins. Raises ``UsageError`` when the cache cannot be written or the model's vocabulary is too
    small.
    """
    vocab_size = _vocab_size(model_vocab_size)
    size_bytes = max(_MIN_CORPUS_BYTES, int(BYTES_PER_TOKEN * (sequences * sequence_length + 1)))
    folder = cache / f"{GENERATED}-{folder_key(seed, size_bytes, vocab_size)}"
    if (folder / MANIFEST_FILE).is_file():
        return folder
    make_folder(folder, MANIFEST_FILE, lambda scratch: _build(scratch, seed, size_bytes, vocab_size))
    return folder


def embedded_tokenizer(cache: Path, model_vocab_size: int) -> Path:
    """The tokenizer of the generated data, in a folder of its own; trained (0.1 s) when it is not there.

    Raises as ``embedded_data`` does.
    """
    vocab_size = _vocab_size(model_vocab_size)
    folder = cache / f"tokenizer-{folder_key(TOKENIZER_SEED, vocab_size)}"
    if not (folder / TOKENIZER_FILE).is_file():
        make_folder(
            folder, TOKENIZER_FILE, lambda scratch: _train(scratch, TOKENIZER_SEED, _MIN_CORPUS_BYTES, vocab_size)
        )
    return folder / TOKENIZER_FILE


def tokenizer_file(plan: Plan) -> Path:
    """The SentencePiece model of a run that tokenizes: the one it names, that of its weights, or the embedded one.

    ``UsageError`` where the data is the user's own, which the embedded tokenizer could hardly spell.
    """
    if plan.tokenizer.path is not None:
        return Path(plan.tokenizer.path).expanduser()
    beside = None if plan.weights is None else Path(plan.weights).expanduser() / TOKENIZER_FILE
    if beside is not None and beside.is_file():
        return beside
    if plan.data.path is None:
        return embedded_tokenizer(cache_dir(), plan.model.vocab_size)
    raise UsageError(
        f"no tokenizer is known for the data in {plan.data.path}",
        f"--set tokenizer.path=FILE, the model's {TOKENIZER_FILE}; or put it into the folder of the weights",
    )


def _vocab_size(model_vocab_size: int) -> int:
    if model_vocab_size < _MIN_VOCAB_SIZE:
        raise UsageError(
            f"a model vocabulary of {model_vocab_size} is too small for the generated corpus",
            f"set model.vocab_size to {_MIN_VOCAB_SIZE} or more",
        )
    return min(_MAX_VOCAB_SIZE, model_vocab_size)


def make_folder(folder: Path, written_last: str, build: Callable[[Path], None]) -> None:
    """Let ``build`` fill a folder that takes ``folder``'s place when it is complete."""
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        scratch.mkdir(parents=True)
        build(scratch)
        _publish(scratch, folder, written_last)
    except OSError as error:
        raise UsageError(
            f"the generated data cannot be written to {folder}: {error.strerror}",
            "set ACCELMARK_CACHE to a writable folder with room",
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _train(folder: Path, seed: int, size_bytes: int, vocab_size: int) -> None:
    corpus = folder / CORPUS_FILE
    write_corpus(corpus, seed, size_bytes)
    train_sentencepiece(corpus, folder / TOKENIZER_FILE, vocab_size)


def _build(folder: Path, seed: int, size_bytes: int, vocab_size: int) -> None:
    _train(folder, seed, size_bytes, vocab_size)
    corpus, tokenizer = folder / CORPUS_FILE, folder / TOKENIZER_FILE
    prepare([corpus], tokenizer, folder, name=GENERATED, add_bos=True, add_eos=True, generated=True)


def _publish(scratch: Path, folder: Path, written_last: str) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        # Another process was faster; its folder holds the same bytes.
        if not (folder / written_last).exists():
            raise


def folder_key(*parameters: int) -> str:
    """What tells folders apart whose contents differ."""
    # Another release of the trainer may cut the corpus into other pieces.
    text = json.dumps([CORPUS_VERSION, trainer_version(), *parameters])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
