"""One vendor's sheet of one case: its texts, in order, and the ids of the records its table shows.

Sheets differ in their sections, so a report holds blocks and no fixed fields. Numbers live in records only: a
cell of the performance table says which part of the record it shows, and carries the published literal beside
it, so that ``core.report.check`` can hold one against the other.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Union

from pydantic import AfterValidator, Field, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import SCHEMA_VERSION, Name, RecordId, Schema, Text

Language = Literal["zh", "en"]

_CHINESE = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\u3000-\u303f]")


def has_chinese(text: str) -> bool:
    """Whether ``text`` holds a Chinese character or full-width punctuation."""
    return _CHINESE.search(text) is not None


def _neutral(text: str) -> str:
    if has_chinese(text):
        raise ValueError("a text with Chinese in it needs both languages: write {'zh': ..., 'en': ...}")
    return text


Neutral = Annotated[str, AfterValidator(_neutral)]
"""A name, number or command that reads the same in both languages."""

Phrase = Union[Text, Neutral]
"""Inline Markdown in both languages; a plain string where they are the same."""


def in_language(phrase: Phrase, language: Language) -> str:
    """``phrase`` in one language."""
    return phrase if isinstance(phrase, str) else phrase.in_language(language)


def spoken(phrase: Phrase) -> tuple[str, str]:
    """``phrase`` in Chinese and in English."""
    return in_language(phrase, "zh"), in_language(phrase, "en")


class Heading(Schema):
    """A heading of its own."""

    kind: Literal["heading"] = "heading"
    level: Annotated[int, Field(ge=1, le=6)]
    text: Phrase


class Paragraph(Schema):
    """A paragraph of prose."""

    kind: Literal["paragraph"] = "paragraph"
    text: Phrase


class Quote(Schema):
    """A block quote; one quoted line per line of ``text``."""

    kind: Literal["quote"] = "quote"
    text: Phrase


class TextItem(Schema):
    """A list item of prose; lines after the first are its indented continuation."""

    kind: Literal["text"] = "text"
    text: Phrase
    level: Annotated[int, Field(ge=1, le=6)] | None = None
    """Heading level of an item that is a heading: ``- ##### 硬件环境``."""
    children: ListBlock | None = None


class EntryItem(Schema):
    """A list item ``key: value``; the value may run over several lines, or be left to the children."""

    kind: Literal["entry"] = "entry"
    key: Phrase
    separator: Literal[":", "："] = "："
    """As the Chinese sheet writes it; English always takes ``:``."""
    value: Phrase | None = None
    children: ListBlock | None = None


BatchField = Literal["local_batch_size", "sequence_length", "gradient_accumulation_steps"]


class BatchItem(Schema):
    """A list item about LBS, MPE or GAS: where it is set and what it is by default."""

    kind: Literal["batch"] = "batch"
    field: BatchField
    name: Neutral
    """As the sheet calls it: ``local_batchsize(micro_batchsize)``."""
    set_in: Phrase
    """The file (or option) that sets the value."""
    default: PositiveInt | None
    """None where the sheet gives no single value, only the ``remark``."""
    remark: Phrase | None = None
    """Text behind the default, with its own punctuation."""


Item = Annotated[Union[TextItem, EntryItem, BatchItem], Field(discriminator="kind")]


class ListBlock(Schema):
    """A list; every item may hold a list of its own."""

    kind: Literal["list"] = "list"
    marker: Literal["-", "*", "1."] = "-"
    items: tuple[Item, ...] = Field(min_length=1)


class Table(Schema):
    """A table of texts."""

    kind: Literal["table"] = "table"
    caption: Phrase | None = None
    """Printed as a paragraph above the table."""
    columns: tuple[Phrase, ...] = Field(min_length=1)
    rows: tuple[tuple[Phrase, ...], ...]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for number, row in enumerate(self.rows, start=1):
            _check_width(number, len(row), len(self.columns))
        return self


class Metric(Schema):
    """One row of the common metrics."""

    name: Phrase
    value: Phrase
    note: Phrase = ""


class MetricTable(Schema):
    """The common metrics (通用指标): what the sheet measures, and in what units."""

    kind: Literal["metrics"] = "metrics"
    columns: tuple[Phrase, Phrase, Phrase] = (
        Text(zh="指标名称", en="Metric"),
        Text(zh="指标值", en="Value"),
        Text(zh="特殊说明", en="Remarks"),
    )
    rows: tuple[Metric, ...]


class ConfigColumn(Schema):
    """Shows ``record.topology``: ``H800 2机16卡（2x8）``."""

    shows: Literal["config"] = "config"
    title: Phrase
    numerals: Literal["digits", "words"] = "digits"
    """``2机16卡`` or ``双机16卡``."""
    chip: Neutral | None = None
    """Printed in place of the topology's chip, where a sheet keeps it to itself (``/``)."""
    with_run: bool = False
    """Whether ``record.run`` follows: ``（pretrain）``."""


class FixHpColumn(Schema):
    """Shows ``record.fix_hp``: ``GAS=64(globalbs=2M tokens)``."""

    shows: Literal["fix_hp"] = "fix_hp"
    title: Phrase
    names: dict[str, Phrase] = {}
    """Field to the name the sheet prints; otherwise GAS, LBS, MPE or the field itself."""

    @model_validator(mode="after")
    def _names_fit_the_notation(self) -> Self:
        for name in self.names.values():
            if not all(re.fullmatch(r"[^\s=,()/][^=,()]*", part) for part in spoken(name)):
                raise ValueError(
                    f"{name!r} cannot stand in fix_hp: a name has no '=', ',', brackets or space before it"
                )
        return self


class AccuracyColumn(Schema):
    """Shows ``record.accuracy[benchmark]``."""

    shows: Literal["accuracy"] = "accuracy"
    title: Phrase
    benchmark: str


class ValueColumn(Schema):
    """Shows one value of the record: ``mfu`` is ``record.mfu.flagperf``, ``mfu_palm`` is ``record.mfu.palm``."""

    shows: Literal[
        "run", "precision", "parallel", "tokens_per_second_per_chip", "loss", "memory", "aligned",
        "mfu", "mfu_palm", "status",
    ]  # fmt: skip
    title: Phrase


Column = Annotated[Union[ConfigColumn, FixHpColumn, AccuracyColumn, ValueColumn], Field(discriminator="shows")]


class Cell(Schema):
    """One cell: what the column shows of the row's record, with the published literal beside it."""

    literal: str | None = None
    """As published, in Chinese; it fixes the number of decimals. None: not published, or ``missing``."""
    missing: Literal["empty", "slash"] | None = None
    """The sheet leaves the cell empty, or prints ``/``."""
    remark: Neutral | None = None
    """Printed behind the last change of a ``fix_hp`` cell."""
    as_published: Text | None = None
    """Why the record's value does not render to the literal; the literal is then printed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.missing is not None and (self.literal is not None or self.as_published is not None):
            raise ValueError("a missing cell has no literal and no as_published reason; remove them")
        if self.as_published is not None and self.literal is None:
            raise ValueError("as_published explains a literal; give the literal, too")
        if self.remark is not None and re.search(r"[()]", self.remark):
            raise ValueError("a remark is printed in brackets and cannot hold any")
        return self

    @property
    def published(self) -> str | None:
        """What the sheet prints, None for a cell that was never published."""
        if self.missing is not None:
            return "" if self.missing == "empty" else "/"
        return self.literal


class Row(Schema):
    """One record's row."""

    record: RecordId
    cells: tuple[Cell, ...] = ()
    """One per column; empty where nothing is published and every cell is rendered from the record."""


class PerformanceTable(Schema):
    """The performance table (性能指标)."""

    kind: Literal["performance"] = "performance"
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for number, row in enumerate(self.rows, start=1):
            _check_width(number, len(row.cells) or len(self.columns), len(self.columns))
        return self

    def cells(self, row: Row) -> tuple[tuple[Column, Cell], ...]:
        """The columns of ``row``, each with its cell."""
        cells = row.cells or tuple(Cell() for _ in self.columns)
        return tuple(zip(self.columns, cells, strict=True))


def _check_width(row: int, cells: int, columns: int) -> None:
    if cells != columns:
        raise ValueError(f"row {row} has {cells} cells, the table has {columns} columns")


Block = Annotated[
    Union[Heading, Paragraph, Quote, ListBlock, Table, MetricTable, PerformanceTable],
    Field(discriminator="kind"),
]


class Report(Schema):
    """One vendor's sheet of one case, published or generated."""

    schema_version: Literal[1] = SCHEMA_VERSION
    id: Name
    case: Name
    vendor: Name
    title: Text
    blocks: tuple[Block, ...] = Field(min_length=1)

    @property
    def tables(self) -> tuple[PerformanceTable, ...]:
        """The performance tables."""
        return tuple(block for block in self.blocks if isinstance(block, PerformanceTable))
