"""Log-likelihoods of continuations under the model of a ``Respondent``, shared out over the ranks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from core.data.tokenizer import Tokenizer, load
from core.errors import UsageError
from core.evaluate.catalog import Progress, Respondent

_TELL_EVERY_S = 1.0


@dataclass
class _Row:
    """One sequence to run, and the continuations that can be read off it: request, first position, tokens."""

    ids: list[int]
    wanted: list[tuple[int, int, list[int]]] = field(default_factory=list)


class Scorer:
    """Tokenizes as the model was trained: BOS, then the text."""

    def __init__(self, respondent: Respondent, batch_size: int, progress: Progress) -> None:
        """UsageError where the tokenizer is not the model's."""
        self._to, self._batch_size, self._progress = respondent, batch_size, progress
        self._tokenizer: Tokenizer = load(respondent.tokenizer)
        if self._tokenizer.vocab_size > respondent.vocab_size:
            raise UsageError(
                f"the tokenizer has a vocabulary of {self._tokenizer.vocab_size}, the model one of "
                f"{respondent.vocab_size}",
                "use the model's own tokenizer (tokenizer.path)",
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, BOS before it."""
        bos = [] if self._tokenizer.bos_id is None else [self._tokenizer.bos_id]
        return [bos + ids for ids in self._tokenizer.encode_batch(texts)]

    def length(self, text: str) -> int:
        """Tokens of ``text``, BOS included."""
        return len(self.encode([text])[0])

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the sum over the continuation's tokens, and whether greedy gives them.

        A context that is asked several times is run once. What is too long loses its beginning.
        """
        rows = self._rows(pairs)
        # Alike lengths together; every rank makes as many passes, for sharded weights are gathered in each.
        rows.sort(key=lambda row: len(row.ids))
        world, size = self._to.world_size, self._batch_size
        own = rows[self._to.rank :: world]
        passes = -(-len(rows) // (world * size))
        found = torch.zeros(2, len(pairs), device=self._to.device)
        told = time.monotonic()
        for number in range(passes):
            part = own[number * size : (number + 1) * size]
            self._score(part or rows[:1], found if part else torch.zeros_like(found))
            if time.monotonic() - told > _TELL_EVERY_S or number + 1 == passes:
                self._progress(min(len(own), (number + 1) * size), max(len(own), 1))
                told = time.monotonic()
        if world > 1:
            dist.all_reduce(found)
        return [(score, bool(greedy)) for score, greedy in zip(*found.tolist(), strict=True)]

    def _rows(self, pairs: Sequence[tuple[str, str]]) -> list[_Row]:
        contexts = dict.fromkeys(context for context, _ in pairs)
        lengths = dict(zip(contexts, map(len, self.encode(list(contexts))), strict=True))
        rows: dict[tuple[int, ...], _Row] = {}
        for request, whole in enumerate(self.encode([context + text for context, text in pairs])):
            tokens = whole[lengths[pairs[request][0]] :]
            ids = whole[:-1][-self._to.max_length :]
            row = rows.setdefault(tuple(ids), _Row(ids))
            row.wanted.append((request, len(ids) - len(tokens), tokens))
        return list(rows.values())

    def _score(self, rows: Sequence[_Row], found: Tensor) -> None:
        """One forward pass; causal attention needs no mask for padding on the right."""
        longest = max(len(row.ids) for row in rows)
        padded = [row.ids + [0] * (longest - len(row.ids)) for row in rows]
        logits: Tensor = self._to.model(input_ids=torch.tensor(padded, device=self._to.device))
        for number, row in enumerate(rows):
            for request, first, tokens in row.wanted:
                told = logits[number, first : first + len(tokens)].float().log_softmax(dim=-1)
                target = torch.tensor(tokens, device=told.device)
                found[0, request] = told.gather(1, target.unsqueeze(1)).sum()
                found[1, request] = (told.argmax(dim=-1) == target).all().float()
