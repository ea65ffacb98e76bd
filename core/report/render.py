"""A report and its records as Markdown, in Chinese or English."""

from __future__ import annotations

from collections.abc import Mapping

from core.errors import UsageError
from core.report.cells import SHORT_NAMES, cell_text
from core.report.check import Finding, check
from core.report.markdown import escape, table_lines
from schemas.base import Text
from schemas.record import Record
from schemas.report import (
    BatchField,
    BatchItem,
    Block,
    EntryItem,
    Heading,
    Item,
    Language,
    ListBlock,
    MetricTable,
    Paragraph,
    PerformanceTable,
    Quote,
    Report,
    Table,
    in_language,
)

TITLE_LEVEL = 3
"""Heading level of a sheet's title, as in the published ones."""

_BATCH_MEANING: dict[BatchField, Text] = {
    "local_batch_size": Text(
        zh="实际进入模型的张量批尺寸", en="the batch size of the tensors that really enter the model"
    ),
    "sequence_length": Text(zh="实际进入模型的序列长度", en="the sequence length that really enters the model"),
    "gradient_accumulation_steps": Text(zh="梯度累加步数", en="the number of gradient accumulation steps"),
}
_FINDINGS_TITLE = Text(
    zh="AccelMark 对本表的检查（非原表内容）", en="What AccelMark checked (not part of the sheet)"
)


def render_report(report: Report, records: Mapping[str, Record], language: Language) -> str:
    """The sheet as Markdown, with what the checks found beneath it.

    ``records`` maps ids to records; UsageError names a record that the sheet shows and that is not there.
    """
    _require_records(report, records)
    lines = ["#" * TITLE_LEVEL + " " + in_language(report.title, language), ""]
    for block in report.blocks:
        lines += [*_block_lines(block, records, language), ""]
    findings = check(report, records)
    if findings:
        lines += [*_finding_lines(findings, language), ""]
    return "\n".join(line.rstrip() for line in lines)


def render_table(table: Table, language: Language) -> str:
    """A table of texts as Markdown, beneath its caption."""
    return "\n".join(_table_lines(table, language))


def _require_records(report: Report, records: Mapping[str, Record]) -> None:
    for table in report.tables:
        for row in table.rows:
            if row.record not in records:
                raise UsageError(
                    f"report {report.id!r} shows record {row.record!r}, which is not there",
                    f"add records/{row.record}.json to case {report.case!r}, or correct the row's `record`",
                )


def _finding_lines(findings: list[Finding], language: Language) -> list[str]:
    title = "#" * (TITLE_LEVEL + 1) + " " + in_language(_FINDINGS_TITLE, language)
    return [title, "", *(f"- {escape(in_language(finding.message, language))}" for finding in findings)]


def _block_lines(block: Block, records: Mapping[str, Record], language: Language) -> list[str]:
    if isinstance(block, Heading):
        return ["#" * block.level + " " + in_language(block.text, language)]
    if isinstance(block, Paragraph):
        return in_language(block.text, language).splitlines()
    if isinstance(block, Quote):
        return [f"> {line}" for line in in_language(block.text, language).splitlines()]
    if isinstance(block, ListBlock):
        return _list_lines(block, language)
    if isinstance(block, PerformanceTable):
        return _performance_lines(block, records, language)
    return _table_lines(block, language)


def _table_lines(block: Table | MetricTable, language: Language) -> list[str]:
    columns = [in_language(column, language) for column in block.columns]
    if isinstance(block, MetricTable):
        rows = [[in_language(cell, language) for cell in (row.name, row.value, row.note)] for row in block.rows]
        return table_lines(columns, rows)
    caption = [] if block.caption is None else [in_language(block.caption, language), ""]
    rows = [[in_language(cell, language) for cell in row] for row in block.rows]
    return caption + table_lines(columns, rows)


def _performance_lines(table: PerformanceTable, records: Mapping[str, Record], language: Language) -> list[str]:
    rows = []
    for row in table.rows:
        record = records[row.record]
        texts = [(cell, cell_text(column, cell, record, language)) for column, cell in table.cells(row)]
        rows.append([text if cell.published is not None else escape(text) for cell, text in texts])
    return table_lines([in_language(column.title, language) for column in table.columns], rows)


def _list_lines(block: ListBlock, language: Language) -> list[str]:
    lines = []
    for number, item in enumerate(block.items, start=1):
        marker = f"{number}. " if block.marker == "1." else f"{block.marker} "
        indent = " " * len(marker)
        first, *rest = _item_text(item, language).splitlines()
        lines.append(marker + first)
        lines += [indent + line for line in rest]
        if not isinstance(item, BatchItem) and item.children is not None:
            lines += [indent + line for line in _list_lines(item.children, language)]
    return lines


def _item_text(item: Item, language: Language) -> str:
    if isinstance(item, BatchItem):
        return _batch_text(item, language)
    if isinstance(item, EntryItem):
        separator = "：" if language == "zh" and item.separator == "：" else ": "
        value = "" if item.value is None else in_language(item.value, language)
        return (in_language(item.key, language) + separator + value).rstrip()
    text = in_language(item.text, language)
    return text if item.level is None else "#" * item.level + " " + text


def _batch_text(item: BatchItem, language: Language) -> str:
    short, meaning = SHORT_NAMES[item.field], in_language(_BATCH_MEANING[item.field], language)
    set_in = in_language(item.set_in, language)
    remark = "" if item.remark is None else in_language(item.remark, language)
    if language == "zh":
        value = remark if item.default is None else f"默认为{item.default}{remark}"
        return f"{item.name}，简写为{short}，即{meaning}，为{set_in}中所写，在本case中{value}"
    value = remark if item.default is None else f"{item.default} by default in this case{remark}"
    return f"{item.name}, {short} for short: {meaning}; set in {set_in}; {value}"
