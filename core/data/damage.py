"""Samples that cannot be used: counted by file, and an error where they are more than a few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from core.errors import UsageError

MAX_SHARE = 0.01
"""Of a data set; beyond it, something is wrong with the data as a whole."""


class Damage:
    """What was left out of a data set, by file."""

    def __init__(self) -> None:
        self._reasons: dict[str, Counter[str]] = {}

    def skip(self, file: str, reason: str) -> None:
        """Leave a sample of ``file`` out; ``reason`` says what is wrong with it."""
        self._reasons.setdefault(file, Counter())[reason] += 1

    @property
    def by_file(self) -> Mapping[str, int]:
        """File -> samples left out."""
        return {file: reasons.total() for file, reasons in self._reasons.items()}

    def check(self, total: int) -> None:
        """``UsageError`` where more than ``MAX_SHARE`` of ``total`` samples were left out, or all of none."""
        skipped = sum(self.by_file.values())
        if skipped > MAX_SHARE * total:
            raise UsageError(
                f"{skipped} of {total} samples cannot be used, more than {MAX_SHARE:.0%}: {self}",
                "correct these files, or remove the samples from them",
            )

    def __str__(self) -> str:
        return "; ".join(
            f"{file}: " + ", ".join(f"{reason} ({number})" for reason, number in reasons.items())
            for file, reasons in self._reasons.items()
        )
