from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import UsageError
from core.report.load import load_records, load_reports
from schemas.record import Record
from schemas.report import Report

TITLE = {"zh": "标题", "en": "Title"}


def test_what_is_written_is_read_back(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    record = make_record()
    (tmp_path / f"{record.id}.json").write_text(record.model_dump_json(), encoding="utf-8")
    assert load_records(tmp_path) == {record.id: record}


def test_reports_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        blocks = [{"kind": "paragraph", "text": "t"}]
        data = {"id": name, "case": "c", "vendor": "v", "title": TITLE, "blocks": blocks}
        (tmp_path / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    found = load_reports(tmp_path)
    assert [report.id for report in found] == ["a", "b"]
    assert isinstance(found[0], Report)


def test_a_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert load_reports(tmp_path / "reports") == ()
    assert load_records(tmp_path / "records") == {}


def test_a_wrong_value_is_told_by_file_field_and_value(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    data = json.loads(make_record().model_dump_json()) | {"parallel": "TP1DP8"}
    (tmp_path / "r.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        load_records(tmp_path)
    assert f"{tmp_path / 'r.json'}: parallel: 'TP1DP8' is not a Parallel" in error.value.what


def test_broken_json_and_wrong_names_are_usage_errors(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    path = tmp_path / "r.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="Invalid JSON"):
        load_records(tmp_path)
    path.write_text(make_record(id="other").model_dump_json(), encoding="utf-8")
    with pytest.raises(UsageError, match="id: 'other' differs from the file's name"):
        load_records(tmp_path)
