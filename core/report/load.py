"""Reads a case's reports, records and reference curves; of a wrong file it tells file, field and value."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from core.errors import UsageError
from schemas.base import explain
from schemas.record import Record
from schemas.reference import ReferenceCurve
from schemas.report import Report

_S = TypeVar("_S", Report, Record, ReferenceCurve)


def load_reports(folder: Path) -> tuple[Report, ...]:
    """Every ``*.json`` report in ``folder``, by name; none where the folder does not exist.

    UsageError names the file, the field and the value that is wrong.
    """
    return tuple(_load(path, Report) for path in sorted(folder.glob("*.json")))


def load_records(folder: Path) -> dict[str, Record]:
    """Every ``*.json`` record in ``folder`` by its id; none where the folder does not exist.

    UsageError names the file, the field and the value that is wrong.
    """
    return {path.stem: _load(path, Record) for path in sorted(folder.glob("*.json"))}


def load_references(folder: Path) -> tuple[ReferenceCurve, ...]:
    """Every ``*.json`` reference curve in ``folder``, by name; none where the folder does not exist.

    UsageError names the file, the field and the value that is wrong.
    """
    return tuple(load_reference(path) for path in sorted(folder.glob("*.json")))


def load_reference(path: Path) -> ReferenceCurve:
    """The reference curve in file ``path``; UsageError names the file, the field and the value that is wrong."""
    return _load(path, ReferenceCurve)


def _load(path: Path, schema: type[_S]) -> _S:
    try:
        loaded = schema.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(explain(error, str(path)), f"correct {path.name}") from error
    if loaded.id != path.stem:
        raise UsageError(
            f"{path}: id: {loaded.id!r} differs from the file's name", f"rename the file to {loaded.id}.json"
        )
    return loaded
