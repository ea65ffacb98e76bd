"""The few questions that come with AccelMark, in MMLU's own layout: they show that asking works, no more."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from core.data.embedded import make_folder
from core.evaluate.questions import LETTERS

VERSION = 2
"""Of the questions; raised whenever they change."""
_SHOWN, _ASKED = 5, 16
_WORDS = ("boat", "sailor", "net", "fish", "rope", "wave", "lamp", "island", "tree", "seed", "flower")


def _sum(number: int) -> tuple[str, list[str]]:
    left, right = 2 + number % 7, 3 + number // 3
    return f"What is {left} + {right}?", [str(left + right + off) for off in (0, 1, 2, 5)]


def _first_letter(number: int) -> tuple[str, list[str]]:
    word = _WORDS[number % len(_WORDS)]
    others = [letter for letter in "bkmpvz" if letter != word[0]]
    return f"Which letter does the word {word} begin with?", [word[0], *others[number % 3 : number % 3 + 3]]


def _longest(number: int) -> tuple[str, list[str]]:
    size = 3 + number % 4
    return "Which number is the largest?", [str(10 * size + number), str(size), str(size + 1), str(20 - size)]


_SUBJECTS: dict[str, Callable[[int], tuple[str, list[str]]]] = {
    "embedded_sums": _sum,
    "embedded_letters": _first_letter,
    "embedded_numbers": _longest,
}
EMBEDDED_SUBJECTS = tuple(_SUBJECTS)


def embedded_questions(cache: Path) -> Path:
    """The folder of the questions; written when it is not there."""
    folder = cache / f"questions-{VERSION}"
    if not folder.is_dir():
        make_folder(folder, "test", write_questions)
    return folder


def write_questions(folder: Path) -> None:
    """Write ``dev/<subject>_dev.csv`` and ``test/<subject>_test.csv``, answers spread over the four letters."""
    for name, make in _SUBJECTS.items():
        for split, numbers in (("dev", range(_SHOWN)), ("test", range(_SHOWN, _SHOWN + _ASKED))):
            (folder / split).mkdir(exist_ok=True)
            with (folder / split / f"{name}_{split}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(_rows(make, numbers))


def _rows(make: Callable[[int], tuple[str, list[str]]], numbers: range) -> Iterator[list[str]]:
    for number in numbers:
        question, (right, *wrong) = make(number)
        place = (7 * number + number // 4) % len(LETTERS)
        yield [question, *wrong[:place], right, *wrong[place:], LETTERS[place]]
