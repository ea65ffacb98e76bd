"""MMLU's questions, read from the published layouts: the authors' CSV files, or the hub's parquet files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from core.data.damage import Damage
from core.errors import UsageError

LETTERS: Final = ("A", "B", "C", "D")
_NAMES = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security
conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
moral_scenarios nutrition philosophy prehistory professional_accounting professional_law
professional_medicine professional_psychology public_relations security_studies sociology us_foreign_policy
virology world_religions
"""
SUBJECTS: Final = tuple(_NAMES.split())
"""All 57 (Hendrycks et al., arXiv 2009.03300)."""
_SPLITS: Final = ("dev", "test")
_FIX = "fetch MMLU again: data.tar of its authors (dev/*_dev.csv, test/*_test.csv), or the hub's parquet files"


@dataclass(frozen=True)
class Question:
    """A question with four options."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Which option is right, from 0."""


@dataclass(frozen=True)
class Subject:
    """The questions that are asked, and those that are shown with their answers before them."""

    examples: tuple[Question, ...]
    questions: tuple[Question, ...]


def read_subjects(folder: Path, names: Sequence[str], damage: Damage) -> Mapping[str, Subject]:
    """Every subject in ``names``; what is damaged goes to ``damage``.

    UsageError where a subject's file is missing or unreadable, or more than 1% of the questions are damaged.
    """
    files = {(name, split): _file(folder, name, split) for name in names for split in _SPLITS}
    missing = sorted({name for (name, _), file in files.items() if file is None})
    if missing:
        raise UsageError(f"{folder} lacks {len(missing)} of {len(names)} subjects: {', '.join(missing[:5])}", _FIX)
    read = {key: tuple(_questions(file, damage)) for key, file in files.items() if file is not None}
    damage.check(sum(map(len, read.values())) + sum(damage.by_file.values()))
    empty = [name for name in names if not read[name, "test"]]
    if empty:
        raise UsageError(f"subject {empty[0]} in {folder} holds no question", _FIX)
    return {name: Subject(examples=read[name, "dev"], questions=read[name, "test"]) for name in names}


def _file(folder: Path, subject: str, split: str) -> Path | None:
    parquet = sorted((folder / subject).glob(f"{split}-*.parquet"))
    candidates = [folder / split / f"{subject}_{split}.csv", *parquet]
    return next((file for file in candidates if file.is_file()), None)


def _questions(file: Path, damage: Damage) -> Iterator[Question]:
    try:
        for row in _parquet_rows(file) if file.suffix == ".parquet" else _csv_rows(file):
            question, choices, answer = row
            if not isinstance(question, str) or not question.strip():
                damage.skip(str(file), "no question")
            elif len(choices) != len(LETTERS) or not all(isinstance(c, str) and c.strip() for c in choices):
                damage.skip(str(file), "an option is missing")
            elif answer not in range(len(LETTERS)):
                damage.skip(str(file), "no answer")
            else:
                yield Question(question, tuple(choices), answer)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read: {error}", _FIX) from None


_Row = tuple[Any, Sequence[Any], Any]


def _csv_rows(file: Path) -> Iterator[_Row]:
    """Question, four options, the letter of the right one; no header."""
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines, strict=True):
            question, *choices, letter = row if len(row) > 1 else (*row, "")
            yield question, choices, LETTERS.index(letter) if letter in LETTERS else None


def _parquet_rows(file: Path) -> Iterator[_Row]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)  # pyarrow's errors are OSError and ValueError
    lacking = {"question", "choices", "answer"} - set(table.column_names)
    if lacking:
        raise ValueError(f"column {min(lacking)!r} is missing")
    for row in table.to_pylist():
        yield row["question"], row["choices"] or (), row["answer"]
