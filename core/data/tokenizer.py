"""SentencePiece tokenizers: loading one, and training the small one of the generated corpus."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UsageError

TOKENIZER_FILE = "tokenizer.model"
_TRAINING_BYTES = 1 << 18


@dataclass(frozen=True)
class Tokenizer:
    """A loaded SentencePiece model; ids are in ``range(vocab_size)``."""

    processor: Any
    sha256: str
    """Of the model file."""
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    """None where the model defines no such piece."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without BOS and EOS; on all cores, in the order of the texts."""
        ids: list[list[int]] = self.processor.encode(list(texts), out_type=int)
        return ids


def load(path: Path) -> Tokenizer:
    """Load a SentencePiece model file, or the ``tokenizer.model`` of a folder; ``UsageError`` where it is none."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    processor = _sentencepiece().SentencePieceProcessor()
    try:
        content = file.read_bytes()
        processor.LoadFromSerializedProto(content)
    except OSError as error:
        raise UsageError(
            f"tokenizer {file} cannot be read: {error.strerror}", "give the path of a SentencePiece model"
        ) from None
    except RuntimeError:
        raise UsageError(
            f"{file} is not a SentencePiece model", "give the `tokenizer.model` that came with the model's weights"
        ) from None
    bos_id, eos_id = processor.bos_id(), processor.eos_id()
    return Tokenizer(
        processor=processor,
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=processor.vocab_size(),
        bos_id=bos_id if bos_id >= 0 else None,
        eos_id=eos_id if eos_id >= 0 else None,
    )


def train_sentencepiece(corpus_jsonl: Path, model_path: Path, vocab_size: int) -> None:
    """Train a BPE model with byte fallback on the first 256 KiB of a JSONL corpus, set up as Llama's.

    Writes ``tokenizer_config.json`` beside it: with the name ``tokenizer.model`` the folder loads in
    ``transformers.LlamaTokenizer`` and gives the same ids (but for a text that begins with a space, to which
    transformers adds none). The same corpus gives the same model.
    Raises ``UsageError`` when the vocabulary is too small for the bytes and letters, or too large for the corpus.
    """
    trainer, model = _sentencepiece().SentencePieceTrainer, io.BytesIO()
    try:
        trainer.train(
            sentence_iterator=_training_texts(corpus_jsonl),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=_TRAINING_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UsageError(
            f"no tokenizer of {vocab_size} pieces can be trained on {corpus_jsonl}: {str(error).split('] ')[-1]}",
            "set a vocabulary between 320 and what the corpus can fill",
        ) from None
    model_path.write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    model_path.with_name("tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def trainer_version() -> str:
    """The installed release of SentencePiece."""
    return str(_sentencepiece().__version__)


def _training_texts(corpus_jsonl: Path) -> Iterator[str]:
    with corpus_jsonl.open("rb") as file:
        for line in file.readlines(_TRAINING_BYTES):
            yield json.loads(line)["text"]


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise UsageError(
            "the package sentencepiece is not installed", "pip install 'accelmark[train]', or sentencepiece alone"
        ) from None
    return sentencepiece
