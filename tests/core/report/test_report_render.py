from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.errors import UsageError
from core.report.markdown import display_width, escape, table_lines
from core.report.render import render_report
from schemas.record import Record
from schemas.report import Report

TITLE = {"zh": "标题", "en": "Title"}


def report(*blocks: Any) -> Report:
    return Report.model_validate({"id": "s", "case": "c", "vendor": "v", "title": TITLE, "blocks": list(blocks)})


def test_tables_are_padded_to_the_width_that_is_seen() -> None:
    lines = table_lines(["配置", "b"], [["H800", "a|b"], ["", "四机"]])
    assert len({display_width(line) for line in lines}) == 1
    assert lines[0] == "| 配置 | b    |"
    assert lines[1] == "| ---- | ---- |"


def test_foreign_text_cannot_break_the_sheet() -> None:
    assert escape("a | b\n*c* `d` <e> \\") == r"a \| b \*c\* \`d\` \<e> \\"


def test_nested_lists_are_indented_by_their_marker() -> None:
    block = {"kind": "list", "marker": "*", "items": [
        {"kind": "text", "text": "top", "children": {"marker": "1.", "items": [
            {"kind": "text", "text": "one\ntwo", "children": {"items": [
                {"kind": "entry", "key": {"zh": "键", "en": "key"}, "value": "v"},
                {"kind": "entry", "key": "k", "separator": ":", "value": "v"},
            ]}},
        ]}},
    ]}  # fmt: skip
    zh = render_report(report(block), {}, "zh").splitlines()
    assert zh[2:] == ["* top", "  1. one", "     two", "     - 键：v", "     - k: v"]
    assert "     - key: v" in render_report(report(block), {}, "en").splitlines()


def test_a_caption_stands_above_its_table() -> None:
    block = {"kind": "table", "caption": {"zh": "附表", "en": "Attached"}, "columns": ["a"], "rows": [["1"]]}
    assert render_report(report(block), {}, "en").splitlines()[2:] == [
        "Attached",
        "",
        "| a   |",
        "| --- |",
        "| 1   |",
    ]


def test_a_missing_record_is_named_with_its_report() -> None:
    table = {"kind": "performance", "columns": [{"shows": "loss", "title": "loss"}], "rows": [{"record": "gone"}]}
    with pytest.raises(UsageError, match=r"report 's' shows record 'gone'") as error:
        render_report(report(table), {}, "zh")
    assert "records/gone.json" in error.value.fix


def test_findings_stand_beneath_the_sheet(make_record: Callable[..., Record]) -> None:
    record = make_record(id="r", memory={"peak_device_gib": 81, "capacity_gib": 80})
    table = {"kind": "performance", "columns": [{"shows": "memory", "title": "mem"}], "rows": [{"record": "r"}]}
    english = render_report(report(table), {"r": record}, "en").strip().splitlines()
    assert english[-3] == "#### What AccelMark checked (not part of the sheet)"
    assert english[-1] == "- row 1, column mem: 81.0 GiB used of a capacity of 80.0 GiB"
    chinese = render_report(report(table), {"r": record}, "zh").strip().splitlines()
    assert chinese[-1] == "- 第1行 mem 格：已用 81.0 GiB，超过容量 80.0 GiB"
