"""A user's own chip file: peaks and memory that go over those of the vendors' plugins.

``ACCELMARK_CHIPS`` names a JSON file, an array of objects::

    [{"vendor": "metax", "name": "C500", "memory_gb": 64,
      "peaks": [{"precision": "bf16", "tflops": 240, "source": "datasheet of our order, page 2"}]}]

Everything but ``vendor`` and ``name`` can be left out. A chip that the vendor's plugin does not have is added to
it. The source of each value begins with ``user:`` and the file's name, so the plan and the record tell it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import PositiveFloat, TypeAdapter, ValidationError

from core.errors import UsageError
from schemas.base import Name, Schema, explain
from schemas.chip import ChipSpec, Peak

VARIABLE = "ACCELMARK_CHIPS"


class UserChip(Schema):
    """What a user states of one chip."""

    vendor: Name
    name: Name
    memory_gb: PositiveFloat | None = None
    """None: as the vendor's plugin has it."""
    peaks: tuple[Peak, ...] = ()
    """Those of other precisions stay the plugin's."""


_ADAPTER = TypeAdapter(tuple[UserChip, ...])


def user_chips() -> tuple[UserChip, ...]:
    """The chips of the user's file; none where no file is named.

    UsageError names file, field and value of what is wrong.
    """
    file = os.environ.get(VARIABLE)
    return _read(Path(file)) if file else ()


@functools.cache
def _read(file: Path) -> tuple[UserChip, ...]:
    try:
        chips = _ADAPTER.validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{VARIABLE}={file}: {error.strerror}", f"name a file that can be read, or unset {VARIABLE}"
        ) from error
    except ValidationError as error:
        raise UsageError(explain(error, str(file)), f"correct {file.name}, or unset {VARIABLE}") from error
    _refuse_doubles(file, chips)
    return chips


def _refuse_doubles(file: Path, chips: Sequence[UserChip]) -> None:
    named = [f"{chip.vendor}/{chip.name}" for chip in chips]
    for index, chip in enumerate(chips):
        precisions = [peak.precision for peak in chip.peaks]
        doubled = [f"{index}.peaks: two peaks for {p}" for p in sorted(set(precisions)) if precisions.count(p) > 1]
        doubled += [f"{index}.name: a second {named[index]}"] if named[index] in named[:index] else []
        if doubled:
            raise UsageError(f"{file}: {doubled[0]}", f"state each value once in {file.name}")


def overridden(vendor: str, chips: Sequence[ChipSpec]) -> tuple[ChipSpec, ...]:
    """The vendor's chips with the user's values over them, and the user's additional ones."""
    stated = {chip.name: chip for chip in user_chips() if chip.vendor == vendor}
    if not stated:
        return tuple(chips)
    own = [_over(chip, stated.pop(chip.name)) if chip.name in stated else chip for chip in chips]
    unknown = "its plugin does not know this chip"
    new = [ChipSpec(name=name, vendor=vendor, memory_gb=None, memory_source=unknown, peaks=()) for name in stated]
    return (*own, *(_over(chip, stated[chip.name]) for chip in new))


def _over(chip: ChipSpec, stated: UserChip) -> ChipSpec:
    source = f"user: {Path(os.environ[VARIABLE]).name}"  # without its folder: records hold no local path
    peaks = {peak.precision: peak for peak in chip.peaks}
    peaks |= {p.precision: p.model_copy(update={"source": f"{source}: {p.source}"}) for p in stated.peaks}
    changes: dict[str, object] = {"peaks": tuple(peaks.values())}
    if stated.memory_gb is not None:
        changes |= {"memory_gb": stated.memory_gb, "memory_source": source}
    return chip.model_copy(update=changes)
