"""The few questions of the default run: about generated pictures, in the hub's layout."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.data.conversations.generate import COLOURS, GENERATOR_VERSION, Picture
from core.data.embedded import cache_dir, make_folder

_SEED = 1
"""Of other pictures than those that are trained on."""
_PICTURES = 8
_SIDE = 96
_FILE = "validation-00000-of-00001.parquet"


def embedded_questions() -> Path:
    """The folder of the questions, made when the cache lacks it."""
    folder = cache_dir() / f"mmmu-{GENERATOR_VERSION}-{importlib.metadata.version('pillow')}"
    if not (folder / "Shapes" / _FILE).is_file():
        make_folder(folder, f"Shapes/{_FILE}", _write)
    return folder


def _write(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for subject, rows in (("Colours", _colours()), ("Comparisons", _comparisons()), ("Shapes", _shapes())):
        (folder / subject).mkdir()
        named = [
            {"id": f"validation_{subject}_{number}", "explanation": "", "subfield": subject} | row
            for number, row in enumerate(rows, start=1)
        ]
        pq.write_table(pa.Table.from_pylist(named), folder / subject / _FILE)


def _pictures() -> list[Picture]:
    return [Picture.of(_SEED, number) for number in range(_PICTURES)]


def _colours() -> Iterator[dict[str, Any]]:
    options = list(COLOURS)[:4]
    for picture in _pictures():
        if picture.colour in options:
            yield _row("What colour is the shape in <image 1>?", [picture], options, picture.colour)


def _comparisons() -> Iterator[dict[str, Any]]:
    options = ["the first", "the second"]
    pictures = _pictures()
    for number, (first, second) in enumerate(pairwise(pictures)):
        if first.caption != second.caption:
            shown = (first, second)[number % 2]
            asked = f"Which picture shows {shown.caption}, <image 1> or <image 2>?"
            yield _row(asked, [first, second], options, options[number % 2])


def _shapes() -> Iterator[dict[str, Any]]:
    for picture in _pictures():
        yield _row("What shape is in <image 1>?", [picture], [], picture.shape)


def _row(question: str, pictures: list[Picture], options: list[str], answer: str) -> dict[str, Any]:
    held: list[dict[str, Any] | None] = [{"bytes": _png(picture), "path": None} for picture in pictures]
    images = held + [None] * (7 - len(held))
    return {
        "question": question,
        "options": repr(options),
        "answer": chr(ord("A") + options.index(answer)) if options else answer,
        "question_type": "multiple-choice" if options else "open",
        **{f"image_{number}": image for number, image in enumerate(images, start=1)},
    }


def _png(picture: Picture) -> bytes:
    content = io.BytesIO()
    picture.draw(_SIDE).save(content, format="PNG")
    return content.getvalue()
