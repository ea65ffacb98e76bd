"""Damaged samples: left out, counted and named, and an error when there are many."""

from __future__ import annotations

from core.errors import UsageError
from core.notices import notify

MOST = 0.01
"""The largest share of damaged samples that a run passes over."""
_NAMED = 10


class BadSampleError(Exception):
    """One sample cannot be used; the text says why, and names the file that is broken."""


class Skipped:
    """What was left out of ``source``, a data set of ``total`` samples."""

    def __init__(self, source: str, total: int) -> None:
        self._source, self._total = source, total
        self._seen: set[str] = set()

    @property
    def count(self) -> int:
        """Samples left out so far, each counted once however often it comes."""
        return len(self._seen)

    def add(self, sample: str, reason: str) -> None:
        """Leave out ``sample``; the record's warnings name the first ten, then tell the number when it doubles.

        Raises UsageError when over 1% of the data set is damaged.
        """
        if sample in self._seen:
            return
        self._seen.add(sample)
        if self.count > MOST * self._total:
            raise UsageError(
                f"{self._source}: {self.count} of {self._total} samples are damaged, more than {MOST:.0%}; "
                f"sample {sample}: {reason}",
                "repair or fetch the data set again, or remove its damaged samples",
            )
        if self.count <= _NAMED:
            notify(f"{self._source}: sample {sample} is left out: {reason}")
        elif self.count & (self.count - 1) == 0:
            notify(f"{self._source}: {self.count} samples are left out so far")
