"""Asking a model MMMU's questions: greedily, with every image, all ranks together."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from core.data.conversations.images import load_pixels
from core.data.conversations.prompts import IMAGE_ID, question
from core.data.conversations.reader import image_arrays
from core.data.tokenizer import Tokenizer, load
from core.errors import UsageError
from core.evaluate.catalog import Progress, Respondent
from core.evaluate.mmmu.answers import chosen_letter, is_right, open_answers
from core.evaluate.mmmu.embedded import embedded_questions
from core.evaluate.mmmu.questions import Question, read_questions
from core.notices import notify
from schemas.evaluation import EMBEDDED, Accuracy, EvaluationSpec, Score
from schemas.model import VisionSpec

MAX_NEW_TOKENS = 32
"""Of an answer: a letter, a word or a phrase is asked for."""
Outcome = Literal["right", "wrong", "unparsable"]


def make(spec: EvaluationSpec) -> None:
    """As ``core.evaluate.catalog.Evaluator``."""
    read_questions(_folder(spec))


def evaluate(spec: EvaluationSpec, respondent: Respondent, progress: Progress) -> Accuracy:
    """As ``core.evaluate.catalog.Evaluator``."""
    asked = read_questions(_folder(spec))
    outcomes = ask(asked.questions, respondent, spec.batch_size, progress)
    by_subject: dict[str, list[Outcome]] = defaultdict(list)
    for one, outcome in zip(asked.questions, outcomes, strict=True):
        by_subject[one.subject].append(outcome)
    return Accuracy(
        **score(outcomes).model_dump(),
        data=EMBEDDED if spec.path is None else _folder(spec).name,
        subjects={subject: score(found) for subject, found in sorted(by_subject.items())},
        unparsable=outcomes.count("unparsable") / len(outcomes),
        skipped=dict(asked.skipped),
    )


def score(outcomes: Sequence[Outcome]) -> Score:
    """The share that is right, with its standard error."""
    count = len(outcomes)
    share = outcomes.count("right") / count
    error = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
    return Score(value=share, standard_error=error, questions=count)


def judge(one: Question, response: str) -> Outcome:
    """Whether ``response`` answers the question."""
    if one.options:
        letter = chosen_letter(response, one.choices)
        if letter is None:
            return "unparsable"
        return "right" if letter in one.answers else "wrong"
    if not response.strip():
        return "unparsable"
    return "right" if is_right(open_answers(response), one.answers) else "wrong"


def ask(
    questions: Sequence[Question], respondent: Respondent, batch_size: int, progress: Progress
) -> list[Outcome]:
    """The outcome of every question, on every rank; each rank asks every ``world_size``-th."""
    if respondent.vision is None:
        raise UsageError("MMMU asks about images, and the model has no vision tower", "evaluate another benchmark")
    asker = _Asker(respondent, respondent.vision)
    own = range(respondent.rank, len(questions), respondent.world_size)
    most = -(-len(questions) // respondent.world_size)
    found: dict[int, Outcome] = {}
    for first in range(0, most, batch_size):  # as often on every rank, also on one that has no question left
        numbers = own[first : first + batch_size]
        responses = asker.answers([questions[number] for number in numbers])
        found |= {number: judge(questions[number], text) for number, text in zip(numbers, responses, strict=True)}
        progress(min(first + batch_size, most), most)
    gathered: list[dict[int, Outcome]] = [found]
    if respondent.world_size > 1:
        gathered = [{} for _ in range(respondent.world_size)]
        dist.all_gather_object(gathered, found)
    everything = {number: outcome for part in gathered for number, outcome in part.items()}
    return [everything[number] for number in range(len(questions))]


@dataclass
class _Row:
    """A prompt and what was answered so far."""

    ids: list[int]
    prompt_length: int
    done: bool = False


class _Asker:
    """Greedy decoding. The whole sequence is computed for every token: an answer is a few tokens long."""

    def __init__(self, respondent: Respondent, vision: VisionSpec) -> None:
        self._respondent, self._vision = respondent, vision
        self._tokenizer: Tokenizer = load(respondent.tokenizer)

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """The responses; ``""`` to a question that is too long for the model."""
        rows, starts, pixels = [], [], []
        for one in questions:
            row, images = self._prompt(one)
            if row.done:
                notify(f"MMMU question {one.name} has {len(row.ids)} tokens, more than the model takes")
            else:
                starts.append(images)
                pixels += [load_pixels(io.BytesIO(image), self._vision.image_size, "") for image in one.images]
            rows.append(row)
        self._decode([row for row in rows if not row.done], starts, pixels)
        return [self._tokenizer.processor.decode(row.ids[row.prompt_length :]) for row in rows]

    def _prompt(self, one: Question) -> tuple[_Row, list[int]]:
        """The prompt with room for its images, and where they begin."""
        ids: list[int] = []
        images: list[int] = []
        for token in question(one.prompt, self._tokenizer):
            if token == IMAGE_ID:
                images.append(len(ids))
                ids += [0] * self._vision.image_tokens
            else:
                ids.append(token)
        return _Row(ids, len(ids), done=len(ids) + MAX_NEW_TOKENS > self._respondent.max_length), images

    def _decode(self, rows: Sequence[_Row], images: Sequence[Sequence[int]], pixels: list[np.ndarray]) -> None:
        """Append to each row until EOS; all ranks stop together, for a forward pass is a collective of theirs."""
        device = self._respondent.device
        pixel_values = image_arrays([], pixels, self._vision)["pixel_values"]
        held = torch.from_numpy(pixel_values).to(device)
        for _ in range(MAX_NEW_TOKENS):
            ids, starts = self._batch(rows, images)
            positions = image_arrays(starts, [], self._vision)["image_positions"]
            logits = self._respondent.model(
                input_ids=torch.from_numpy(ids).to(device),
                pixel_values=held,
                image_positions=torch.from_numpy(positions).to(device),
            )
            for number, row in enumerate(rows):
                if not row.done:
                    token = int(logits[number, len(row.ids) - 1].argmax())
                    row.done = token == self._tokenizer.eos_id or token >= self._tokenizer.vocab_size
                    row.ids += [] if row.done else [token]
            if self._all_done(rows):
                return

    def _batch(self, rows: Sequence[_Row], images: Sequence[Sequence[int]]) -> tuple[np.ndarray, list[int]]:
        """The rows padded behind, where no token attends to it; without any row, one token that serves nothing."""
        length = max((len(row.ids) for row in rows), default=1)
        ids = np.zeros((max(len(rows), 1), length), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
        return ids, [number * length + start for number, held in enumerate(images) for start in held]

    def _all_done(self, rows: Sequence[_Row]) -> bool:
        going = torch.tensor(sum(not row.done for row in rows), device=self._respondent.device)
        if self._respondent.world_size > 1:
            dist.all_reduce(going)
        return int(going) == 0


def _folder(spec: EvaluationSpec) -> Path:
    return embedded_questions() if spec.path is None else Path(spec.path).expanduser()
