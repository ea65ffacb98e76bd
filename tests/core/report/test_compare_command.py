"""Records side by side: their results, and only what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from core.cli import main
from schemas.plan import Plan
from schemas.record import Record


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Record], str]:
    def written(record: Record) -> str:
        file = tmp_path / f"{record.id}.json"
        file.write_text(record.model_dump_json(), encoding="utf-8")
        return str(file)

    return written


@pytest.fixture
def three(
    make_plan: Callable[..., Plan], make_record: Callable[..., Record], write: Callable[[Record], str]
) -> list[str]:
    """Two runs of one config, and a published record."""
    base = make_record(make_plan(hp={"attention": "eager"}))
    tuned = make_record(make_plan(run="tuned"), environment={**base.environment, "torch": "2.11.0", "env A": "1"})
    published = make_record(id="published", source="published", chip="Y1", topology="Y1x1x8", environment={})
    bare = published.model_copy(update={"plan": None, "throughput": None, "math_mode": {}})
    return [write(base), write(tuned), write(bare)]


def test_results_and_what_differs_stand_side_by_side(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *three, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["records"] == ["X1x1x4_base", "X1x1x4_tuned", "published"]
    assert told["results"]["token/p/s"] == ["12,431.6", "12,431.6", "/"]
    assert told["results"]["J/token"][0] == "0.04926"
    assert told["differences"] == {
        "chip": ["X1", "X1", "Y1"],
        "topology": ["X1x1x4", "X1x1x4", "Y1x1x8"],
        "attention": ["eager", "sdpa", "/"],
        "environment torch": ["2.13.0", "2.11.0", "/"],
        "environment env A": ["/", "1", "/"],
    }
    assert main(["compare", *three]) == 0
    out = capsys.readouterr().out
    assert "│ X1x1x4 base" in out.replace("┃", "│")
    assert "│ attention " in out


def test_where_nothing_differs_that_is_said(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", three[0], three[0]]) == 0
    assert capsys.readouterr().out.endswith("nothing differs that the records tell\n")


@pytest.mark.parametrize(
    ("words", "what"), [([], "one record alone cannot be compared"), (["nowhere"], "no record 'nowhere'")]
)
def test_two_records_are_needed(
    three: list[str], capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    assert main(["compare", three[0], *words]) == 2
    assert f"error: {what}\n  fix: " in capsys.readouterr().err
