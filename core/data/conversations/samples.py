"""Reading LLaVA's JSON: a list of samples, each a dialogue and perhaps the file of an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.skipped import BadSampleError, Skipped
from core.errors import UsageError

IMAGE = "<image>"
"""Where the image stands in a turn."""
_ROLES = ("human", "gpt")


@dataclass(frozen=True)
class Sample:
    """One dialogue."""

    name: str
    """Its id, or its number in the file."""
    turns: tuple[str, ...]
    """Question and answer by turns, at least one of each."""
    image: str | None
    """File, relative to the folder of the images; one of the questions then holds ``IMAGE``."""

    @property
    def words(self) -> int:
        """Words of all turns: the length that batches are grouped by."""
        return sum(len(turn.split()) for turn in self.turns)


def conversation_file(path: Path) -> Path:
    """The JSON file that ``path`` is, or the only one in that folder, files of metadata apart."""
    if path.is_file():
        return path
    files = sorted(
        file
        for file in path.glob("*.json")
        if not file.stem.endswith("_meta") and file.stem not in ("metadata", "tokenizer_config")
    )
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UsageError(
            f"{path} is no conversations file and holds not one but {names}",
            "set data.path to the JSON file of the conversations; its images lie beside it, or in images/ there",
        )
    return files[0]


def image_file(folder: Path, name: str) -> Path:
    """The file of an image: relative to the conversations' folder, or to ``images/`` there."""
    beside = folder / name
    return beside if beside.is_file() else folder / "images" / name


def read_samples(file: Path) -> tuple[list[Sample], Skipped]:
    """The samples of ``file`` that are whole, and those left out; UsageError where the file is no such JSON."""
    try:
        entries = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}", "fetch the file again") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(
            f"{file} holds no list of samples", "set data.path to a conversations file in LLaVA's layout"
        )
    skipped = Skipped(file.name, len(entries))
    samples: list[Sample] = []
    for number, entry in enumerate(entries):
        name = str(entry.get("id", number)) if isinstance(entry, dict) else str(number)
        try:
            samples.append(_sample(name, entry))
        except BadSampleError as bad:
            skipped.add(f"{number} ({name})", str(bad))
    return samples, skipped


def _sample(name: str, entry: Any) -> Sample:
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise BadSampleError("it has no list 'conversations'")
    turns = _turns(entry["conversations"])
    image = entry.get("image")
    if image is None:
        if any(IMAGE in turn for turn in turns):
            raise BadSampleError(f"it says {IMAGE}, but names no image")
        return Sample(name, turns, None)
    if not isinstance(image, str) or Path(image).is_absolute() or ".." in Path(image).parts:
        raise BadSampleError(f"its image {image!r} is no path below the folder of the images")
    return Sample(name, _with_image_first(turns), image)


def _turns(conversation: list[Any]) -> tuple[str, ...]:
    """The texts of a dialogue in which human and model take turns; what the model says first is passed over."""
    if not conversation:
        raise BadSampleError("its dialogue is empty")
    said = [turn if isinstance(turn, dict) else {} for turn in conversation]
    if said[0].get("from") == "gpt":
        said = said[1:]
    texts: list[str] = []
    for number, turn in enumerate(said):
        role, text = turn.get("from"), turn.get("value")
        if role != _ROLES[number % 2]:
            raise BadSampleError(f"turn {number + 1} is of {role!r}, not of {_ROLES[number % 2]!r}")
        if not isinstance(text, str) or not text.strip():
            raise BadSampleError(f"turn {number + 1} is empty")
        texts.append(text)
    if not texts or len(texts) % 2:
        raise BadSampleError("it ends without an answer")
    return tuple(texts)


def _with_image_first(turns: Sequence[str]) -> tuple[str, ...]:
    """The image on a line of its own before the question that holds it, wherever it stood there."""
    places = [number for number, turn in enumerate(turns) if IMAGE in turn]
    if len(places) != 1 or places[0] % 2:
        raise BadSampleError(f"its image stands in {len(places)} turns, not in one question")
    return tuple(
        f"{IMAGE}\n{turn.replace(IMAGE, '').strip()}".strip() if number == places[0] else turn
        for number, turn in enumerate(turns)
    )
