"""Format ``dialogues``: prompts to summarise a dialogue, packed; only the summaries are trained.

The files are samsum's (``train.json`` of its authors, a list; JSON lines; the hub's parquet) with the fields
``dialogue`` and ``summary``. Prompt and labels are those of llama-recipes' ``samsum_dataset.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import notices
from core.data.damage import Damage
from core.data.embedded import GENERATED, cache_dir, tokenizer_file
from core.data.generated_dialogues import generated_dialogues
from core.data.packing import PackedReader, Stream
from core.data.source import IGNORED_LABEL
from core.data.tokenizer import Tokenizer, load
from core.errors import UsageError
from schemas.plan import Plan

PROMPT = "Summarize this dialog:\n{dialogue}\n---\nSummary:\n"
SUFFIXES = (".json", ".jsonl", ".parquet")
_TRAINING = "train"
"""How the training split's files begin; those of other splits lie beside them."""
_BATCH = 4096

Sample = tuple[str, str]
"""Dialogue and summary."""


def make(plan: Plan) -> None:
    """As ``core.data.catalog.Format``."""
    tokenizer_file(plan)
    _files(plan)


def open_source(plan: Plan, *, replica: int, verify: bool) -> PackedReader:
    """As ``core.data.catalog.Format``. Every rank reads and tokenizes all dialogues, which takes seconds.

    Dialogues that are damaged are left out and told of; ``UsageError`` where they are more than 1%.
    """
    files = _files(plan)
    damage = Damage()
    samples = [sample for file in files for sample in read_dialogues(file, damage)]
    damage.check(len(samples) + sum(damage.by_file.values()))
    if damage.by_file and verify:
        notices.notify(f"dialogues were left out: {damage}")
    if not samples:
        raise UsageError(f"no dialogue in {', '.join(map(str, files))}", "give files that hold dialogues")
    tokenizer = load(tokenizer_file(plan))
    if tokenizer.vocab_size > plan.model.vocab_size:
        raise UsageError(
            f"the tokenizer has a vocabulary of {tokenizer.vocab_size}, the model one of {plan.model.vocab_size}",
            "use the model's own tokenizer (tokenizer.path), or raise model.vocab_size",
        )
    hp = plan.hyper_parameters
    return PackedReader(
        stream(samples, tokenizer),
        name=GENERATED if plan.data.path is None else plan.data.name,
        sequence_length=hp.sequence_length,
        document_mask=hp.packing == "document_mask",
        local_batch_size=hp.local_batch_size,
        rank=replica,
        world_size=plan.parallel.dp,
        seed=hp.seed,
    )


def stream(samples: Sequence[Sample], tokenizer: Tokenizer) -> Stream:
    """BOS, prompt, summary, EOS, dialogue after dialogue; only summary and EOS are trained.

    Prompt and summary are tokenized apart, so that the border between them is the same in every dialogue.
    ``UsageError`` where the tokenizer has no such pieces.
    """
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise UsageError(
            "the tokenizer has no BOS or no EOS piece", "use the model's own tokenizer (tokenizer.path)"
        )
    ids: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    for start in range(0, len(samples), _BATCH):
        part = samples[start : start + _BATCH]
        prompts = tokenizer.encode_batch([PROMPT.format(dialogue=dialogue) for dialogue, _ in part])
        answers = tokenizer.encode_batch([summary for _, summary in part])
        for prompt, answer in zip(prompts, answers, strict=True):
            trained = [*answer, tokenizer.eos_id]
            ids += [tokenizer.bos_id, *prompt, *trained]
            labels += [IGNORED_LABEL] * (1 + len(prompt)) + trained
            lengths.append(1 + len(prompt) + len(trained))
    documents = np.repeat(np.arange(len(lengths)), lengths)
    return Stream(np.asarray(ids), np.asarray(labels), documents, pad_id=tokenizer.eos_id)


def read_dialogues(file: Path, damage: Damage) -> Iterator[Sample]:
    """The usable dialogues of one file; the others go to ``damage``. UsageError for a file that cannot be read."""
    for record in _records(file, damage):
        dialogue, summary = (
            (record.get("dialogue"), record.get("summary")) if isinstance(record, dict) else (None, None)
        )
        if not isinstance(dialogue, str) or not dialogue.strip():
            damage.skip(str(file), "no dialogue")
        elif not isinstance(summary, str) or not summary.strip():
            damage.skip(str(file), "no summary")
        else:
            yield dialogue.replace("\r\n", "\n"), summary


def _records(file: Path, damage: Damage) -> Iterator[Any]:
    try:
        if file.suffix == ".parquet":
            yield from _parquet(file)
        elif file.suffix == ".jsonl":
            for line in file.read_text(encoding="utf-8").splitlines():
                yield from _json_line(line, file, damage)
        else:
            found = json.loads(file.read_text(encoding="utf-8"))
            yield from found if isinstance(found, list) else [found]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "fetch the file again") from None


def _json_line(line: str, file: Path, damage: Damage) -> Iterator[Any]:
    if not line.strip():
        return
    try:
        yield json.loads(line)
    except ValueError:
        damage.skip(str(file), "not valid JSON")


def _parquet(file: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError(f"{file} needs the package pyarrow", "pip install pyarrow, or give JSON") from None
    yield from pq.read_table(file).to_pylist()  # pyarrow's errors are OSError and ValueError


def _files(plan: Plan) -> list[Path]:
    """The files of the training split, in order."""
    if plan.data.path is None:
        hp, data = plan.hyper_parameters, plan.data
        folder = generated_dialogues(
            cache_dir(), sequences=data.generated_sequences, sequence_length=hp.sequence_length
        )
    else:
        folder = Path(plan.data.path).expanduser()
    if folder.is_file():
        return [folder]
    known = [file for file in sorted(folder.rglob("*")) if file.suffix in SUFFIXES and file.is_file()]
    found = [file for file in known if file.name.startswith(_TRAINING)] or known[:1] * (len(known) == 1)
    if not found:
        raise UsageError(
            f"{folder} holds no {_TRAINING}* file of {', '.join(SUFFIXES)}",
            "name the file of dialogues, or the folder that holds train.json, train.jsonl or train*.parquet",
        )
    return found
