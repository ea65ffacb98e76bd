"""What the conformance suite found of one vendor's plugin on one machine."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import SCHEMA_VERSION, Name, Schema

Verdict = Literal["passed", "failed", "not declared", "not run"]
"""``not declared``: the plugin leaves the hook out, says that its device does not run the engine,
or does not let tuned runs compile."""


class CheckResult(Schema):
    """One check. Only what has run, and held, is ``passed``; everything else says why."""

    id: str
    hook: str
    """The hook that it holds the plugin to; for whole runs, ``engines``."""
    proves: str
    verdict: Verdict
    reason: str | None = None
    """One line, for every verdict but passed."""
    detail: str | None = None
    """What was measured."""
    duration_s: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if (self.verdict == "passed") == (self.reason is not None):
            raise ValueError(f"check {self.id}: {self.verdict!r} with the reason {self.reason!r}")
        return self


class ConformanceReport(Schema):
    """All checks of one plugin on one machine."""

    schema_version: Literal[1] = SCHEMA_VERSION
    vendor: Name
    distribution: str
    chip: str | None
    """The chip that was tried; None where this machine holds none of the vendor's."""
    ranks: PositiveInt | None
    """Ranks that the engines ran on."""
    device: str | None
    """As the driver calls it."""
    emulated: bool
    environment: dict[str, str]
    started_unix_s: NonNegativeFloat
    duration_s: NonNegativeFloat
    results: tuple[CheckResult, ...]

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many checks have each verdict; the four in a fixed order."""
        found = Counter(result.verdict for result in self.results)
        return {verdict: found[verdict] for verdict in ("passed", "failed", "not declared", "not run")}
