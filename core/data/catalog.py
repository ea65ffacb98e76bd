"""The formats of data that runs can read, by ``DataSpec.format``; each is imported only where it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, Protocol, cast

from core.data.source import DataSource
from schemas.case import DataFormat
from schemas.plan import Plan


class Format(Protocol):
    """What the module of a format holds."""

    def make(self, plan: Plan) -> None:
        """Build what the cache lacks (the generated data); called on one process a node before ``open_source``."""

    def open_source(self, plan: Plan, *, replica: int, verify: bool) -> DataSource:
        """The batches of data parallel rank ``replica``; ``verify``: check the files thoroughly (one rank a node).

        Raises ``UsageError`` for data that is missing, damaged, too small or beyond the model.
        """


FORMATS: Final[Mapping[DataFormat, str]] = {
    "tokens": "core.data.dataset",
    "conversations": "core.data.conversations.dataset",
    "dialogues": "core.data.dialogues",
}
"""Format -> module with the functions of ``Format``."""


def data_format(plan: Plan) -> Format:
    """The module that reads the plan's data."""
    return cast(Format, importlib.import_module(FORMATS[plan.data.format]))
