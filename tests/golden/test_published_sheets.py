"""Every published sheet that the repository holds as data re-renders to what was published, white space aside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.report import check, load_records, load_reports, render_report
from schemas.record import Record
from schemas.report import Report, has_chinese

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(__file__).parent / "published"
SHEETS = {
    "H800_baichuan2_13b": "baichuan2_13b",
    "S4000_llama2_7b": "llama2_7b",
    "C500_llama2_70b": "llama2_70b",
    "MLU_llava1.5_13b": "llava1_5_13b",
    "A100_llama2_7b_finetune": "llama2_7b_finetune",
}
TRAINED = {
    "baichuan2_13b": ("pretrained", "openwebtext"),
    "llama2_7b": ("pretrained", "openwebtext"),
    "llama2_70b": ("random", "pile wikipedia"),
    "llama2_7b_finetune": ("pretrained", "samsum"),
    "llava1_5_13b": ("pretrained", "LAION-CC-SBU + llava_v1_5_mix665k"),
}
"""The weights that a sheet's runs started from, and their data."""
Element = tuple[Any, ...]
Elements = Callable[[str], list[Element]]


def load(case: str) -> tuple[Report, dict[str, Record]]:
    folder = ROOT / "cases" / case
    (report,) = load_reports(folder / "reports")
    return report, load_records(folder / "records")


def published_text(sheet: str) -> str:
    return (PUBLISHED / f"{sheet}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("sheet", SHEETS)
def test_a_published_sheet_re_renders_element_by_element(sheet: str, elements: Elements) -> None:
    published = elements(published_text(sheet))
    rendered = elements(render_report(*load(SHEETS[sheet]), "zh"))
    assert rendered[: len(published)] == published
    beneath = rendered[len(published) :]
    assert [element[0] for element in beneath] == (["heading", "item"] if sheet.startswith("S4000") else [])


@pytest.mark.parametrize("sheet", SHEETS)
def test_the_comparison_sees_every_kind_of_element(sheet: str, elements: Elements) -> None:
    text = published_text(sheet)
    lines = [line for line in text.splitlines() if line.strip() and not re.fullmatch(r"[|\s:-]+", line)]
    seen = sum(len(e[1]) if e[0] == "table" else 1 for e in elements(published_text(sheet)))
    assert seen == len(lines)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2068", "2069"),
        ("16.3%", "16.4%"),
        ("H800软件环境", "H800 软件环境"),
        ("OS版本：", "OS版本:"),
        (r"\*gradient", "*gradient"),
        ("* 通用指标", "- 通用指标"),
        ("    - CPU型号", "- CPU型号"),
        ("### 运行情况", "#### 运行情况"),
        ("所以性能相比", "所以性能比"),
        ("| 40%  | / ", "| 40%  |   "),
    ],
)
def test_a_planted_fault_fails_the_comparison(old: str, new: str, elements: Elements) -> None:
    text = published_text("H800_baichuan2_13b")
    assert text.count(old) >= 1
    planted = elements(text.replace(old, new, 1))
    assert planted != elements(render_report(*load("baichuan2_13b"), "zh"))


def test_a_planted_number_in_a_record_changes_the_sheet_and_is_found(elements: Elements) -> None:
    report, records = load("baichuan2_13b")
    record = records["published_H800x2x8_gas64"]
    wrong = record.model_copy(update={"loss": record.loss.model_copy(update={"last": 2.17})})
    planted = records | {record.id: wrong}
    assert elements(render_report(report, planted, "zh")) != elements(published_text("H800_baichuan2_13b"))
    (finding,) = check(report, planted)
    assert (finding.rule, finding.in_data, finding.row, finding.columns) == ("literal", True, 2, ("loss",))
    assert "2.07" in finding.message.en
    assert "2.17" in finding.message.en


@pytest.mark.parametrize("case", SHEETS.values())
def test_english_holds_no_chinese_and_the_same_numbers(case: str, elements: Elements) -> None:
    report, records = load(case)
    chinese, english = render_report(report, records, "zh"), render_report(report, records, "en")
    assert not has_chinese(english)
    tables = [[e[1] for e in elements(text) if e[0] == "table"] for text in (chinese, english)]
    zh_cells, en_cells = ([row[1:] for row in table[-1][1:]] for table in tables)
    named = [[cell.replace("数据精度=", "precision=") for cell in row] for row in zh_cells]
    assert named == en_cells
    assert [e[0] for e in elements(chinese)] == [e[0] for e in elements(english)]


def test_the_swap_in_the_s4000_sheet_is_found_by_itself() -> None:
    report, records = load("llama2_7b")
    (finding,) = check(report, records)
    assert (finding.rule, finding.in_data, finding.row, finding.columns) == ("swapped", False, 1, ("loss", "mem"))
    sheets = {"互换": render_report(report, records, "zh"), "swapped": render_report(report, records, "en")}
    for word, sheet in sheets.items():
        last = sheet.strip().splitlines()[-1]
        assert word in last
        assert "loss = 3.20" in last
        assert "mem = 44.2/48.0" in last


def test_only_the_swapped_cells_are_kept_as_published() -> None:
    kept = []
    for case in SHEETS.values():
        report, _ = load(case)
        for table in report.tables:
            for row in table.rows:
                kept += [(case, c.literal) for c in row.cells if c.as_published is not None]
    assert kept == [("llama2_7b", "44.2/48.0"), ("llama2_7b", "3.20")]


@pytest.mark.parametrize("case", SHEETS.values())
def test_published_records_say_what_they_are(case: str) -> None:
    _, records = load(case)
    published = [record for record in records.values() if record.source == "published"]
    assert published
    for record in published:
        assert (record.status, record.weights, record.data) == ("ok", *TRAINED[case])
        assert record.plan is None
        assert record.rankable


def test_report_data_holds_no_sheet_as_one_text() -> None:
    """A text of the data is a line, a note of two or a printed call: no pasted Markdown."""
    for case in SHEETS.values():
        for path in (ROOT / "cases" / case / "reports").glob("*.json"):
            texts = _strings(json.loads(path.read_text(encoding="utf-8")))
            lines = [(text, line) for text in texts for line in text.splitlines()]
            assert not [line for _, line in lines if line.lstrip().startswith(("|", "- ", "* ", "#", ">"))]
            long = {text for text, line in lines if text != line}
            assert all(text.startswith("LoraConfig(") or text.count("\n") == 1 for text in long)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        yield from _strings([item for key, item in value.items() if key != "marker"])
