"""Generated dialogues: pictures of a shape on a ground, questions about them, and stories without a picture.

Their lengths follow a histogram, and what is said of a picture is true of it, so there is something to learn. All
comes from a seed; where nothing else says so, choices are bytes of a SHAKE-128 stream (see ``core.data.corpus``).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from core.data.conversations.prompts import SYSTEM, Template
from core.data.conversations.samples import IMAGE
from core.data.corpus import documents
from core.data.lengths import LengthHistogram
from core.data.tokenizer import Tokenizer

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other samples."""
CONVERSATIONS_FILE = "conversations.json"
PICTURES = 256
"""Different pictures at most; samples share them."""

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 200),
    "yellow": (230, 210, 40),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
SHAPES = ("circle", "square", "triangle")
_SIDES = ((1.0, 1.0), (1.5, 1.0), (1.0, 1.25))
"""Width and height of pictures, in units of what the model takes."""
SHORT = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Picture:
    """A shape of one colour on a ground of another."""

    shape: str
    colour: str
    ground: str
    sides: tuple[float, float]

    @classmethod
    def of(cls, seed: int, number: int) -> Picture:
        """The picture of that number."""
        choice = hashlib.shake_128(b"accelmark picture %d %d" % (seed, number)).digest(4)
        colours = list(COLOURS)
        colour = colours.pop(choice[0] % len(colours))
        ground, shape = colours[choice[1] % len(colours)], SHAPES[choice[2] % len(SHAPES)]
        return cls(shape, colour, ground, _SIDES[choice[3] % len(_SIDES)])

    @property
    def caption(self) -> str:
        """What it shows."""
        return f"a {self.colour} {self.shape} on a {self.ground} ground"

    @property
    def questions(self) -> Sequence[tuple[str, str]]:
        """What can be asked of it, and the answers."""
        return (
            ("What colour is the shape?", self.colour),
            ("What shape is in the picture?", self.shape),
            ("What colour is the ground?", self.ground),
            (f"Is there a {self.shape}?", "yes"),
            (f"Is the ground {self.colour}?", "no"),
        )

    def draw(self, side: int) -> Image.Image:
        """The picture, about ``side`` pixels wide."""
        width, height = (round(side * factor) for factor in self.sides)
        image = Image.new("RGB", (width, height), COLOURS[self.ground])
        box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
        draw, fill = ImageDraw.Draw(image), COLOURS[self.colour]
        if self.shape == "circle":
            draw.ellipse(box, fill=fill)
        elif self.shape == "square":
            draw.rectangle(box, fill=fill)
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), (width // 2, box[1])], fill=fill)
        return image


@dataclass(frozen=True)
class Wanted:
    """What to generate."""

    seed: int
    samples: int
    template: Template
    image_size: int
    lengths: LengthHistogram
    scale: float
    """Lengths are this share of the histogram's."""


def generate(folder: Path, wanted: Wanted, tokenizer: Tokenizer) -> None:
    """Write pictures and dialogues into ``folder``, in LLaVA's layout; ``tokenizer`` measures their length."""
    pictures = [Picture.of(wanted.seed, number) for number in range(min(wanted.samples, PICTURES))]
    (folder / "images").mkdir()
    for number, picture in enumerate(pictures):
        picture.draw(wanted.image_size).save(folder / "images" / f"{number:04d}.jpg", quality=90)
    write = _write_caption if wanted.template == "plain" else _Dialogues(tokenizer, wanted.seed).write
    samples = [
        {"id": f"{number:06d}"} | write(length, number % len(pictures) if image else None, pictures)
        for number, (length, image) in enumerate(draw_lengths(wanted))
    ]
    text = json.dumps(samples, indent=1, ensure_ascii=False)
    (folder / CONVERSATIONS_FILE).write_text(text + "\n", encoding="utf-8")


def draw_lengths(wanted: Wanted) -> Iterator[tuple[int, bool]]:
    """Of each sample, how many tokens it should have besides those of an image, and whether it has one.

    Taken at even distances from the histogram, in random order: even a few samples have its shape.
    """
    raw = np.random.PCG64([wanted.seed, 7]).random_raw(wanted.samples)
    for place in np.argsort(raw, kind="stable").tolist():
        length, image = wanted.lengths.quantile((place + 0.5) / wanted.samples)
        yield max(1, round(length * wanted.scale)), image


def _write_caption(_: int, number: int | None, pictures: Sequence[Picture]) -> dict[str, Any]:
    assert number is not None, "captions need pictures: the histogram counts none without"
    return _entry(number, [f"Describe the image briefly.\n{IMAGE}", pictures[number].caption])


class _Dialogues:
    """Writes dialogues of about a given length."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._sentences = _sentences(seed)
        self._count = functools.lru_cache(maxsize=4096)(lambda text: len(tokenizer.encode_batch([text])[0]))
        self._system = self._count(SYSTEM) + 1

    def write(self, length: int, number: int | None, pictures: Sequence[Picture]) -> dict[str, Any]:
        """A dialogue of ``length`` tokens: less by what no further round fits in, more where one is longer."""
        if number is None:
            asked = itertools.cycle([("Tell a short story.", ""), ("Go on.", "")])
        else:
            asked = itertools.cycle(pictures[number].questions)
        turns: list[str] = []
        used = self._system
        for question, known in asked:
            text = question if turns or number is None else f"{IMAGE}\n{question}\n{SHORT}"
            cost = self._count(f"USER: {text} ASSISTANT: {known}") + 1
            if turns and used + cost > length:
                break
            used += cost
            answer, told = (known, 0) if known else self._story(min(length - used, 200))
            used += told
            turns += [text, answer]
        return _entry(number, turns)

    def _story(self, length: int) -> tuple[str, int]:
        """At least one sentence, and as many as ``length`` tokens hold; and how many tokens they are."""
        story: list[str] = []
        used = 0
        while not story or used < length:
            story.append(next(self._sentences))
            used += self._count(story[-1])
        return " ".join(story), used


def _entry(number: int | None, turns: Sequence[str]) -> dict[str, Any]:
    said = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]
    return {"conversations": said} if number is None else {"image": f"{number:04d}.jpg", "conversations": said}


def _sentences(seed: int) -> Iterator[str]:
    for document in documents(seed):
        yield from (f"{sentence}." for sentence in document.rstrip(".").split(". "))
