"""What a free answer means, and whether it is right: the rules of MMMU's own ``eval_utils.py``.

With one difference: an answer in which no option can be found is not replaced by a random one; it is unparsable,
and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)
"""With commas, in scientific notation, and simple ones."""
_LONG = 5
"""Words beyond which an answer may quote an option instead of naming its letter."""


def chosen_letter(response: str, choices: Mapping[str, str]) -> str | None:
    """The letter that ``response`` names last, as ``(A)`` or else ``A``, or whose option it quotes; else None."""
    for sign in (",", ".", "!", "?", ";", ":", "'"):
        response = response.strip(sign)
    padded = f" {response} "
    for form in ("({})", " {} "):
        found = {letter: padded.rfind(form.format(letter)) for letter in choices}
        if max(found.values()) >= 0:
            return max(found, key=found.__getitem__)
    if len(padded.split()) > _LONG:
        quoted = {letter: padded.lower().rfind(option.lower()) for letter, option in choices.items()}
        if max(quoted.values()) >= 0:
            return max(quoted, key=quoted.__getitem__)
    return None


def open_answers(response: str) -> list[str | float]:
    """Everything that ``response`` may be taken to answer: its key phrases and the numbers in them, normalised."""
    phrases = _key_phrases(response)
    numbers = [number for phrase in phrases for pattern in _NUMBERS for number in re.findall(pattern, phrase)]
    return _normalised([*phrases, *numbers])


def is_right(found: Sequence[str | float], answers: Iterable[str]) -> bool:
    """Whether a normalised answer holds one of the texts, or equals one of the numbers, that count."""
    right = _normalised(answers)
    texts = [answer for answer in right if isinstance(answer, str)]
    return any(any(text in one for text in texts) if isinstance(one, str) else one in right for one in found)


def _key_phrases(response: str) -> list[str]:
    """What follows the shortest of the words that announce a result, of each sentence; else the whole response."""
    response = response.strip().strip(".").lower()
    sentences = re.split(r"\.\s(?=[A-Z])|\n", response)
    phrases: list[str] = []
    for number, sentence in enumerate(sentences):
        keys = (*_KEYS, "=") if number == len(sentences) - 1 else _KEYS
        tails = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        shortest = min((tail for tail in tails if tail), key=len, default="")
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            phrases.append(shortest)
    return phrases or [response]


def _normalised(texts: Iterable[str]) -> list[str | float]:
    """Numbers rounded to two decimals, texts in small letters; a single letter must stand beside a space."""
    found: list[str | float] = []
    for text in texts:
        bare = text.strip()
        try:
            found.append(round(float(bare.replace(",", "")), 2))
        except ValueError:
            small = bare.lower()
            found += [f" {small}", f"{small} "] if len(small) == 1 else [small]
    return found
