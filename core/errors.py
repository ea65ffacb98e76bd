"""Errors that a user can act on: one line what is wrong, one line how to fix it, and an exit code."""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar


class AccelMarkError(Exception):
    """What is wrong (with the value) and how to fix it; shown without a traceback unless ``--debug``."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  fix: {self.fix}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes, without another call of ``__init__``, which takes more than ``args``."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class RunError(AccelMarkError):
    """The run itself failed."""

    exit_code: ClassVar[int] = 1


class UsageError(AccelMarkError):
    """A command line, case, config or plan that cannot be."""

    exit_code: ClassVar[int] = 2


class DeviceError(AccelMarkError):
    """A plugin, package or device that is not available."""

    exit_code: ClassVar[int] = 3


class ThresholdError(AccelMarkError):
    """A comparison that could be made, and that failed."""

    exit_code: ClassVar[int] = 4
