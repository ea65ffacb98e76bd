"""Prompt templates of LLaVA-1.5 and which tokens are trained: ``plain`` captions, ``v1`` (Vicuna's) dialogues.

As ``llava/train/train.py`` and ``llava/conversation.py`` of haotian-liu/LLaVA make them: pieces between images and
after an end of sentence are tokenized by themselves, and only what the model says (with the end of sentence behind
it) has labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.data.conversations.samples import IMAGE, Sample
from core.data.skipped import BadSampleError
from core.data.tokenizer import Tokenizer

Template = Literal["plain", "v1"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE_ID = -1
"""Stands for an image among token ids."""


@dataclass
class Prompt:
    """Token ids of a dialogue, ``IMAGE_ID`` where an image stands."""

    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    """Whether the model learns to say the token."""

    def add(self, ids: Sequence[int], *, trained: bool) -> None:
        """Go on with ``ids``."""
        self.ids += ids
        self.trained += [trained] * len(ids)


def plain(sample: Sample, tokenizer: Tokenizer) -> Prompt:
    """Image, caption, line break: ``BOS <image> caption \\n``; the question is not used, and there is no EOS."""
    if len(sample.turns) != 2 or sample.image is None:
        raise BadSampleError("a caption is one question with an image and one answer")
    prompt = Prompt()
    prompt.add([_bos(tokenizer), IMAGE_ID], trained=False)
    prompt.add(tokenizer.encode_batch([sample.turns[1] + "\n"])[0], trained=True)
    return prompt


def v1(sample: Sample, tokenizer: Tokenizer) -> Prompt:
    """``BOS system USER: question ASSISTANT: answer EOS``, then ``USER: question ASSISTANT: answer EOS`` each."""
    prompt = Prompt()
    prompt.add([_bos(tokenizer)], trained=False)
    for asked, answer in rounds(sample.turns):
        *before, last = asked.split(IMAGE)
        *pieces, question, whole = tokenizer.encode_batch([*before, last, f"{last} {answer}"])
        for piece in pieces:
            prompt.add([*piece, IMAGE_ID], trained=False)
        if whole[: len(question)] != question:
            raise BadSampleError("an answer changes how the question before it is tokenized")
        prompt.add(question, trained=False)
        prompt.add([*whole[len(question) :], _eos(tokenizer)], trained=True)
    return prompt


def rounds(turns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each question as the model is asked it, and the answer; a last question without answer has ``""``."""
    for number in range(0, len(turns), 2):
        system = f"{SYSTEM} " if number == 0 else ""
        answer = turns[number + 1] if number + 1 < len(turns) else ""
        yield f"{system}USER: {turns[number]} ASSISTANT:", answer


def question(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt that asks ``text`` (which may hold images) and leaves the answer to the model."""
    ((asked, _),) = rounds([text])
    ids = [_bos(tokenizer)]
    for number, piece in enumerate(tokenizer.encode_batch(asked.split(IMAGE))):
        ids += [*([IMAGE_ID] if number else []), *piece]
    return ids


TEMPLATES: dict[Template, Callable[[Sample, Tokenizer], Prompt]] = {"plain": plain, "v1": v1}


def _bos(tokenizer: Tokenizer) -> int:
    assert tokenizer.bos_id is not None
    return tokenizer.bos_id


def _eos(tokenizer: Tokenizer) -> int:
    assert tokenizer.eos_id is not None
    return tokenizer.eos_id
