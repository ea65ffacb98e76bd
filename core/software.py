"""For vendor plugins: versions of a vendor's software that are known to work, or known not to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from core.errors import DeviceError
from core.notices import notify


@dataclass(frozen=True)
class KnownVersions:
    """What is known of one software. A series is a version's beginning, number by number: 2.7 is of 2.7.1."""

    software: str
    lowest: str
    needed_for: str
    """Why nothing older than ``lowest`` will do."""
    working: tuple[str, ...]
    """Series that somebody has reported to work."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Series that do not work, and why."""

    def check(self, version: str) -> None:
        """DeviceError for a version that cannot work; a warning in the record for one that nobody has told of."""
        works = f"install one of the series {', '.join(self.working)}"
        if numbers(version) < numbers(self.lowest):
            raise DeviceError(
                f"{self.software} {version} is older than {self.lowest}, which {self.needed_for}", works
            )
        for series, why in self.broken.items():
            if _is_of(version, series):
                raise DeviceError(f"{self.software} {version} does not work here: {why}", works)
        if not any(_is_of(version, series) for series in self.working):
            known = ", ".join(self.working)
            notify(f"{self.software} {version}: nobody has reported this series to work (known: {known})")


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version, without what follows (``2.7.1+git8614ba1`` and ``v2.7.1rc2`` are 2, 7, 1)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def installed_version(*distributions: str) -> str | None:
    """The version of the first of ``distributions`` that is installed."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _is_of(version: str, series: str) -> bool:
    return numbers(version)[: len(numbers(series))] == numbers(series)
