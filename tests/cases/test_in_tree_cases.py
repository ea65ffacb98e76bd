"""What the cases ship: valid, complete, and with a README that says what their data says."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import cases, plan
from core.plugins import select
from core.report.load import load_records, load_references, load_reports
from core.report.readme import render_case_readme

ROOT = Path(__file__).parents[2]
NAMES = sorted(folder.parent.name for folder in (ROOT / "cases").glob("*/__init__.py"))


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_is_what_report_renders(name: str) -> None:
    loaded = cases.resolve(str(ROOT / "cases" / name))
    reports, records = load_reports(loaded.folder / "reports"), load_records(loaded.folder / "records")
    expected = render_case_readme(loaded.case, reports, records, "zh")
    assert (loaded.folder / "README.md").read_text(encoding="utf-8") == expected, (
        f"run: python -m core report cases/{name} --write"
    )


@pytest.mark.parametrize("name", NAMES)
def test_measured_records_are_of_plans_that_the_case_still_makes(name: str) -> None:
    """A row stands beside its config: same settings, or the config was changed and must be measured again."""
    loaded = cases.resolve(str(ROOT / "cases" / name))
    curves = {reference.record for reference in load_references(loaded.folder / "references")}
    for record in load_records(loaded.folder / "records").values():
        if record.plan is None:
            continue
        config = loaded.config(record.plan.config)
        made = plan.build(plan.Request(loaded, config, config.run(record.run), select(record.vendor)))
        assert record.plan.hyper_parameters == made.hyper_parameters, record.id
        assert record.status in ("ok", "oom"), record.id  # that a plan does not fit is a result, too
        # What is kept for its curve or its verdict need not be as long as what is kept for its speed.
        assert record.official or record.id in curves or record.alignment is not None
