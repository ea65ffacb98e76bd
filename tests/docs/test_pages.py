"""README, CONTRIBUTING and docs: links lead somewhere, and the table of results says what the records say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.commands.tables import percent_cell
from core.report.load import load_records
from schemas.record import Record

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def headings(page: Path) -> set[str]:
    """Of each heading the name that GitHub gives it in links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def row_of(record: Record) -> tuple[str, ...]:
    """Engine, config, type of the optimizer state, and the three numbers, as README prints them."""
    assert record.plan is not None
    assert record.throughput is not None
    state = record.plan.hyper_parameters.optimizer_state.removesuffix("_stochastic")
    rate = f"{record.throughput.tokens_per_second_per_chip:,.0f}"
    mfu = percent_cell(record.mfu.flagperf), percent_cell(record.mfu.palm)
    return record.engine, str(record.topology), state, rate, *mfu


def test_every_row_of_the_readme_is_an_official_records() -> None:
    measured: dict[tuple[str, ...], str] = {}
    for folder in (ROOT / "cases").glob("*/records"):
        official = (r for r in load_records(folder).values() if r.official and r.plan and r.throughput)
        measured |= {row_of(record): record.case for record in official}
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| case | config | run (engine) |")[2]
    rows = [line.strip("| ").split(" | ") for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) > 10
    for case, config, run, *numbers in rows:
        engine = run.rpartition("(")[2].rstrip(")")
        found = measured.get((engine, config, *numbers))
        assert found is not None, f"{case} {config} {run}: no official record has {numbers}"
        assert case.startswith(found)
