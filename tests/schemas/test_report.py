from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.base import Text
from schemas.report import (
    BatchItem,
    Cell,
    ConfigColumn,
    FixHpColumn,
    ListBlock,
    Paragraph,
    PerformanceTable,
    Phrase,
    Report,
    Row,
    Table,
    ValueColumn,
    has_chinese,
    in_language,
    spoken,
)

BOTH = {"zh": "环境配置", "en": "Environment"}


def report(*blocks: Any) -> dict[str, Any]:
    return {"id": "r", "case": "c", "vendor": "v", "title": BOTH, "blocks": list(blocks)}


def test_blocks_are_told_apart_by_kind_and_survive_json() -> None:
    given = Report.model_validate(
        report(
            {"kind": "heading", "level": 4, "text": BOTH},
            {"kind": "paragraph", "text": "MFU"},
            {"kind": "quote", "text": "a\nb"},
            {"kind": "list", "items": [{"kind": "text", "text": "a", "children": {"items": [
                {"kind": "entry", "key": BOTH, "separator": ":", "value": "Xeon"}]}}]},
            {"kind": "table", "columns": ["a", "b"], "rows": [["1", "/"]]},
            {"kind": "metrics", "rows": [{"name": BOTH, "value": "bf16"}]},
            {"kind": "performance", "columns": [{"shows": "loss", "title": "loss"}], "rows": [{"record": "x"}]},
        )
    )  # fmt: skip
    kinds = [block.kind for block in given.blocks]
    assert kinds == ["heading", "paragraph", "quote", "list", "table", "metrics", "performance"]
    assert Report.model_validate_json(given.model_dump_json()) == given
    assert [table.rows[0].record for table in given.tables] == ["x"]


def test_a_plain_string_stands_for_both_languages_unless_it_holds_chinese() -> None:
    adapter: TypeAdapter[Phrase] = TypeAdapter(Phrase)
    assert spoken(adapter.validate_python("Ubuntu 22.04")) == ("Ubuntu 22.04", "Ubuntu 22.04")
    assert spoken(adapter.validate_python(BOTH)) == ("环境配置", "Environment")
    with pytest.raises(ValidationError, match="needs both languages"):
        adapter.validate_python("InfiniBand，200Gb/s")


@pytest.mark.parametrize(("text", "expected"), [("卡", True), ("（1x8）", True), ("、", True), ("“a” ×·®", False)])
def test_has_chinese(text: str, expected: bool) -> None:
    assert has_chinese(text) is expected


def test_in_language() -> None:
    assert in_language(Text(zh="甲", en="A"), "en") == "A"
    assert in_language(Text(zh="甲", en="A"), "zh") == "甲"
    assert in_language("MFU", "zh") == "MFU"


@pytest.mark.parametrize(
    ("cell", "published"),
    [
        ({"literal": "3.20"}, "3.20"),
        ({"missing": "slash"}, "/"),
        ({"missing": "empty"}, ""),
        ({}, None),
    ],
)
def test_a_cell_knows_two_kinds_of_missing(cell: dict[str, Any], published: str | None) -> None:
    assert Cell.model_validate(cell).published == published


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ({"literal": "/", "missing": "slash"}, "a missing cell has no literal"),
        ({"missing": "empty", "as_published": BOTH}, "a missing cell has no literal"),
        ({"as_published": BOTH}, "give the literal"),
        ({"remark": "2M (tokens)"}, "cannot hold any"),
        ({"missing": "dash"}, "'empty' or 'slash'"),
    ],
)
def test_a_cell_that_contradicts_itself_is_refused(cell: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Cell.model_validate(cell)


def test_rows_must_be_as_wide_as_the_table() -> None:
    columns = (ValueColumn(shows="loss", title="loss"), ValueColumn(shows="mfu", title="MFU"))
    with pytest.raises(ValidationError, match="row 2 has 1 cells, the table has 2 columns"):
        PerformanceTable(columns=columns, rows=(Row(record="a"), Row(record="b", cells=(Cell(),))))
    with pytest.raises(ValidationError, match="row 1 has 1 cells, the table has 2 columns"):
        Table(columns=("a", "b"), rows=(("1",),))


def test_a_row_without_cells_is_rendered_from_its_record_in_full() -> None:
    row = Row(record="a")
    table = PerformanceTable(columns=(ConfigColumn(title="c"), FixHpColumn(title="f")), rows=(row,))
    assert [(column.shows, cell.published) for column, cell in table.cells(row)] == [
        ("config", None),
        ("fix_hp", None),
    ]


@pytest.mark.parametrize("name", ["a=b", "a,b", "a(b)", " a", "/", ""])
def test_names_that_would_break_the_fix_hp_notation_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="cannot stand in fix_hp"):
        FixHpColumn(title="fix_hp", names={"precision": name})


def test_unknown_columns_blocks_and_markers_are_refused() -> None:
    with pytest.raises(ValidationError, match="shows"):
        PerformanceTable.model_validate({"columns": [{"shows": "price", "title": "p"}], "rows": [{"record": "a"}]})
    with pytest.raises(ValidationError, match="kind"):
        Report.model_validate(report({"kind": "markdown", "text": "| a |"}))
    with pytest.raises(ValidationError, match="marker"):
        ListBlock.model_validate({"marker": "+", "items": [{"kind": "text", "text": "a"}]})
    with pytest.raises(ValidationError, match="at least 1 item"):
        Report.model_validate(report())


def test_batch_items_are_typed() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        BatchItem(field="local_batch_size", name="LBS", set_in="config.py", default=0)


def test_reports_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Paragraph(text="a").text = "b"  # type: ignore[misc]
