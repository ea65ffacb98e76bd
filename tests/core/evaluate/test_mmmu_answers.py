"""What a free answer means, against the cases that MMMU's own rules were written for."""

from __future__ import annotations

import pytest

from core.evaluate.mmmu.answers import chosen_letter, is_right, open_answers

CHOICES = {"A": "the heart", "B": "the lung", "C": "Liver and kidney", "D": "12.5 m"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("Not (A), but (D)", "D"),
        ("A or B , then B", "B"),
        ("(A) is what B says", "A"),  # brackets go before a letter alone
        ("It must be liver and kidney, I think", "C"),
        ("liver and kidney", None),  # a short answer must name the letter
        ("Because", None),
        ("b", None),
        ("", None),
    ],
)
def test_the_letter(response: str, letter: str | None) -> None:
    assert chosen_letter(response, CHOICES) == letter


@pytest.mark.parametrize(
    ("response", "answers", "right"),
    [
        ("12", ["12"], True),
        ("The answer is 1,200.", ["1200"], True),
        ("x = 3.14159", ["3.14"], True),
        ("The result is 2.5e3", ["2500"], True),
        ("So it is a red circle", ["circle"], True),
        ("circle", ["square", "Circle"], True),
        ("12", ["13"], False),
        ("a square", ["circle"], False),
        ("about", ["a"], False),  # a single letter must stand alone
        ("it is a", ["a"], True),
    ],
)
def test_an_open_answer(response: str, answers: list[str], right: bool) -> None:
    assert is_right(open_answers(response), answers) is right
