"""Writes the JSON Schema of every kind of file: ``python -m schemas.export`` fills ``schemas/json``.

Units are strings there, with their pattern and an example. A file that has drifted from the code fails a test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import override

from schemas.case import Case, HardwareConfig
from schemas.checkpoint import Checkpoint
from schemas.chip import ChipSpec
from schemas.conformance import ConformanceReport
from schemas.event import EventAdapter
from schemas.plan import Plan
from schemas.record import Record
from schemas.reference import ReferenceCurve
from schemas.report import Report

FOLDER: Final = Path(__file__).resolve().parent / "json"

EXPORTED: Final[Mapping[str, TypeAdapter[Any]]] = {
    "case": TypeAdapter(Case),
    "hardware_config": TypeAdapter(HardwareConfig),
    "chip_spec": TypeAdapter(ChipSpec),
    "plan": TypeAdapter(Plan),
    "event": EventAdapter,
    "record": TypeAdapter(Record),
    "report": TypeAdapter(Report),
    "reference": TypeAdapter(ReferenceCurve),
    "conformance": TypeAdapter(ConformanceReport),
    "checkpoint": TypeAdapter(Checkpoint),
}


class _WithoutFieldTitles(GenerateJsonSchema):
    """A title made of the field's name (``elapsed_s``: Elapsed S) would tell nothing."""

    @override
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def render(name: str) -> str:
    """The text of ``<name>.schema.json``: JSON Schema 2020-12 of what is accepted, keys sorted."""
    schema = EXPORTED[name].json_schema(schema_generator=_WithoutFieldTitles)
    schema["$schema"] = _WithoutFieldTitles.schema_dialect
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write(folder: Path = FOLDER) -> list[Path]:
    """Write every schema into ``folder`` and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in EXPORTED:
        path = folder / f"{name}.schema.json"
        path.write_text(render(name), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    for file in write():
        print(file)
