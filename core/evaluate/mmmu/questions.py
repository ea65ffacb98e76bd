"""Questions of MMMU from parquet files in the hub's layout: a folder a subject, columns as in MMMU/MMMU."""

from __future__ import annotations

import ast
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.data.conversations.images import load_pixels
from core.data.conversations.samples import IMAGE
from core.data.skipped import BadSampleError, Skipped
from core.errors import UsageError

COLUMNS = ("id", "question", "options", "answer", "question_type", *(f"image_{n}" for n in range(1, 8)))
_MENTIONED = re.compile(r"<image (\d+)>")
_CHOOSE = "Answer with the option's letter from the given choices directly."
_SHORT = "Answer the question using a single word or phrase."


@dataclass(frozen=True)
class Question:
    """One question with everything that belongs to it."""

    name: str
    subject: str
    text: str
    options: tuple[str, ...]
    """Empty for an open question."""
    answers: tuple[str, ...]
    """A letter; of an open question every answer that counts."""
    images: tuple[bytes, ...]

    @property
    def choices(self) -> dict[str, str]:
        """Letter -> option."""
        return {chr(ord("A") + number): option for number, option in enumerate(self.options)}

    @property
    def prompt(self) -> str:
        """What is asked: all images first, as LLaVA was trained; the text goes on to call them <image n>."""
        asked = f"{self.text}\n"
        if self.options:
            asked += "".join(f"({letter}) {option}\n" for letter, option in self.choices.items()) + f"\n{_CHOOSE}"
        else:
            asked += _SHORT
        return f"{IMAGE}\n" * len(self.images) + asked


@dataclass(frozen=True)
class QuestionSet:
    """All questions of a folder that are whole."""

    questions: tuple[Question, ...]
    skipped: Mapping[str, int]
    """File -> questions left out."""


def read_questions(folder: Path) -> QuestionSet:
    """The validation questions below ``folder``, in the order of files and rows.

    UsageError for a folder without such files, for one that cannot be read as parquet (a truncated one, say), and
    where over 1% of the questions are damaged.
    """
    files = sorted(folder.rglob("validation-*.parquet"))
    if not files:
        raise UsageError(
            f"{folder} holds no validation-*.parquet",
            "set evaluation.path to a folder with MMMU's validation files, a folder a subject as on the hub",
        )
    tables = {file: _rows(file) for file in files}
    skipped = Skipped(f"MMMU in {folder.name}", sum(len(rows) for rows in tables.values()))
    questions: list[Question] = []
    left_out = Counter[str]()
    for file, rows in tables.items():
        name = str(file.relative_to(folder))
        for number, row in enumerate(rows):
            try:
                questions.append(_question(row, file.parent.name))
            except BadSampleError as bad:
                left_out[name] += 1
                skipped.add(f"{row.get('id') or number} of {name}", str(bad))
    return QuestionSet(tuple(questions), dict(left_out))


def _rows(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{file} cannot be read as parquet: {error}", "fetch the file again") from error
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise UsageError(
            f"{file} lacks column {missing[0]!r}", "evaluation.path must hold MMMU's own files (MMMU/MMMU)"
        )
    return rows


def _question(row: Mapping[str, Any], folder: str) -> Question:
    name = str(row["id"])
    known = re.fullmatch(r"[a-z]+_(\w+)_\d+", name)
    kind = row["question_type"]
    if kind not in ("multiple-choice", "open"):
        raise BadSampleError(f"its type is {kind!r}")
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise BadSampleError("it asks nothing")
    options = _options(row, kind)
    question = Question(
        name=name,
        subject=known[1] if known else folder,
        text=row["question"],
        options=options,
        answers=_answers(row["answer"], options),
        images=tuple(_images(row)),
    )
    mentioned = [int(number) for text in (question.text, *options) for number in _MENTIONED.findall(text)]
    for number in mentioned:
        if number > len(question.images):
            raise BadSampleError(f"it speaks of image {number} and has {len(question.images)}")
    return question


def _options(row: Mapping[str, Any], kind: Literal["multiple-choice", "open"]) -> tuple[str, ...]:
    """The options, which the hub keeps as the text of a Python list."""
    if kind == "open":
        return ()
    try:
        options = ast.literal_eval(row["options"])
    except (ValueError, SyntaxError, TypeError) as error:
        raise BadSampleError(f"its options are no list: {row['options']!r}") from error
    whole = isinstance(options, list) and all(isinstance(option, str) and option.strip() for option in options)
    if not whole or len(options) < 2:
        raise BadSampleError(f"an option is missing: {row['options']!r}")
    return tuple(options)


def _answers(answer: Any, options: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(answer, str) or not answer.strip():
        raise BadSampleError("it has no answer")
    if options:
        if answer not in [chr(ord("A") + number) for number in range(len(options))]:
            raise BadSampleError(f"its answer {answer!r} is none of its {len(options)} options")
        return (answer,)
    if answer.startswith("["):
        try:
            several = ast.literal_eval(answer)
        except (ValueError, SyntaxError):
            return (answer,)
        return tuple(str(one) for one in several)
    return (answer,)


def _images(row: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of ``image_1`` and on; a gap would change which one the text means."""
    held = [row[f"image_{number}"] for number in range(1, 8)]
    count = sum(image is not None for image in held)
    for number, image in enumerate(held[:count], start=1):
        content = image.get("bytes") if isinstance(image, dict) else None
        if not content:
            raise BadSampleError(f"image_{number} is missing, or holds no bytes")
        load_pixels(io.BytesIO(content), 1, f"image_{number}")
        yield content
