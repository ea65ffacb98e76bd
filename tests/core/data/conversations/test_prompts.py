"""Token ids and labels against LLaVA's own way to make them: ``preprocess_v1`` of its ``llava/train/train.py``."""

from __future__ import annotations

from typing import Any

import pytest

from core.data.conversations.prompts import IMAGE_ID, SYSTEM, plain, question, v1
from core.data.conversations.samples import Sample
from core.data.skipped import BadSampleError

IGNORED = -100


class Published:
    """LLaVA's steps, in its order: one text, its ids, then labels by counting the ids of parts of the text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def ids(self, text: str) -> list[int]:
        """As Llama's tokenizer in transformers, which knows the end of sentence in a text."""
        found = [self.tokenizer.bos_id]
        for number, piece in enumerate(text.split("</s>")):
            found += [self.tokenizer.eos_id] * (number > 0)
            found += self.tokenizer.encode_batch([piece])[0] if piece else []
        return found

    def ids_with_images(self, text: str) -> list[int]:
        first, *others = [self.ids(piece) for piece in text.split("<image>")]
        return first + [token for piece in others for token in (IMAGE_ID, *piece[1:])]

    def v1(self, turns: tuple[str, ...]) -> tuple[list[int], list[int]]:
        text = SYSTEM + " "
        for number, turn in enumerate(turns):
            text += ("USER: " + turn + " ") if number % 2 == 0 else ("ASSISTANT: " + turn + "</s>")
        ids = self.ids_with_images(text)
        labels = list(ids)
        at = 1
        labels[:at] = [IGNORED]
        for part in text.split("</s>")[:-1]:
            asked = part.split(" ASSISTANT: ")[0] + " ASSISTANT: "
            instruction = len(self.ids_with_images(asked)) - 2
            labels[at : at + instruction] = [IGNORED] * instruction
            at += len(self.ids_with_images(part))
        assert at == len(ids)
        return ids, labels


def labels(prompt: Any) -> list[int]:
    return [token if trained else IGNORED for token, trained in zip(prompt.ids, prompt.trained, strict=True)]


@pytest.mark.parametrize(
    ("turns", "image"),
    [
        (("<image>\nWhat colour is the old boat?\nAnswer shortly.", "red"), "a.jpg"),
        (("<image>\nWho is there?", "Anna pulled the net.", "Why?", "It rained.", "When?", "at night"), "a.jpg"),
        (("What is this?", "A boat.", "<image>\nAnd this?", "A lamp."), "a.jpg"),
        (("Tell a story about the harbour.", "The sailor lost the rope. Ben watched."), None),
    ],
)
def test_v1_is_as_published(turns: tuple[str, ...], image: str | None, tokenizer: Any) -> None:
    prompt = v1(Sample("x", turns, image), tokenizer)
    assert (prompt.ids, labels(prompt)) == Published(tokenizer).v1(turns)


def test_what_is_learnt_is_the_answers(tokenizer: Any) -> None:
    prompt = v1(Sample("x", ("Who?", "Ben.", "When?", "at night"), None), tokenizer)
    learnt = [token for token, trained in zip(prompt.ids, prompt.trained, strict=True) if trained]
    answers = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(["Ben.", "at night"])]
    assert learnt == answers[0] + answers[1]


def test_plain_is_as_published(tokenizer: Any) -> None:
    prompt = plain(Sample("x", ("Describe.\n<image>", "a red boat"), "a.jpg"), tokenizer)
    caption = tokenizer.encode_batch(["a red boat\n"])[0]
    assert prompt.ids == [tokenizer.bos_id, IMAGE_ID, *caption]
    assert labels(prompt) == [IGNORED, IGNORED, *caption]


@pytest.mark.parametrize("sample", [Sample("x", ("a", "b", "c", "d"), "a.jpg"), Sample("x", ("a", "b"), None)])
def test_only_a_caption_is_plain(sample: Sample, tokenizer: Any) -> None:
    with pytest.raises(BadSampleError, match="a caption is one question with an image and one answer"):
        plain(sample, tokenizer)


def test_a_question_is_the_beginning_of_its_dialogue(tokenizer: Any) -> None:
    asked = question("<image>\nWho is there?", tokenizer)
    answered = v1(Sample("x", ("<image>\nWho is there?", "Ben."), "a.jpg"), tokenizer)
    assert answered.ids[: len(asked)] == asked
    assert not any(answered.trained[: len(asked)])
    assert answered.trained[len(asked)]


def test_an_answer_that_changes_the_question_is_left_out(tokenizer: Any) -> None:
    class Merging:
        bos_id, eos_id = 1, 2

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[len(text)] for text in texts]

    with pytest.raises(BadSampleError, match="changes how the question before it is tokenized"):
        v1(Sample("x", ("Who?", "Ben."), None), Merging())  # type: ignore[arg-type]
