"""A record as a file, and the files of a run that it is built from."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UsageError
from core.outcome import OUTCOME_FILE
from core.record import build_record, read_record, write_record
from core.worker import PLAN_FILE
from tests.core.record.run_folder import RunFolder

ROOT = Path(__file__).parents[3]


def test_a_written_record_is_read_again(whole: RunFolder) -> None:
    built = whole.record()
    assert write_record(whole.folder) == built
    assert read_record(whole.folder / "record.json") == built


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        (PLAN_FILE, "{}", "plan.json: case: this field is missing"),
        (
            OUTCOME_FILE,
            '{"command": "c", "exit_code": "x"}',
            "outcome.json: exit_code: Input should be a valid int",
        ),
        (OUTCOME_FILE, '{"command"', "outcome.json: (whole value): Invalid JSON"),
        ("events/rank00000.jsonl", '{"kind": "finish"}\n', "rank00000.jsonl (line 1 of this read): "),
    ],
)
def test_a_file_that_was_edited_is_named(whole: RunFolder, file: str, text: str, what: str) -> None:
    (whole.folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        whole.record()
    assert what in error.value.what


def test_a_folder_that_was_renamed_is_told(whole: RunFolder) -> None:
    whole.record()
    renamed = whole.folder.rename(whole.folder.parent / "run 1 (copy)")
    with pytest.raises(UsageError) as error:
        build_record(renamed)
    assert "id: String should match pattern" in error.value.what
    assert "(got 'run 1 (copy)')" in error.value.what


def test_a_record_file_that_is_wrong_is_told_by_file_field_and_value(tmp_path: Path) -> None:
    good = ROOT / "cases/baichuan2_13b/records/published_H800x2x8_base.json"
    bad = tmp_path / "r.json"
    bad.write_text(good.read_text(encoding="utf-8").replace('"H800x2x8"', '"H800"'), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_record(bad)
    assert f"{bad}: topology: 'H800' is not a Topology" in error.value.what
    assert error.value.fix == "correct r.json"
