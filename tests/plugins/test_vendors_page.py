"""``docs/vendors.md`` keeps up with the plugins."""

import json
import re
from pathlib import Path

import pytest

from core import plugins, user_chips
from core.testing.catalog import CHECKS
from plugins.cambricon import TORCH_MLU
from plugins.metax import MACA_TORCH
from plugins.torch_musa import TORCH_MUSA
from schemas.conformance import ConformanceReport

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "vendors.md").read_text(encoding="utf-8")
ROWS = {row[1].strip(" `"): row for line in PAGE.splitlines() if len(row := line.split("|")) == 6}
EMBEDDED = [found for found in plugins.discover() if found.distribution == "accelmark"]


@pytest.mark.parametrize("found", EMBEDDED, ids=lambda found: found.name)
def test_every_vendor_has_a_row_and_a_section(found):
    assert f"\n## {found.name}\n" in PAGE
    row = ROWS[found.name]
    listed = [chip.name for chip in found.vendor.chips if chip.name in row[2]]
    assert listed == [chip.name for chip in found.vendor.chips] or "accelmark list chips" in row[2]
    assert all(cell.strip() for cell in row[1:5])
    section = PAGE.partition(f"\n## {found.name}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^- \*\*(.+?):\*\*", section, re.MULTILINE) == ["Software", "Verified", "Not known"]


@pytest.mark.parametrize(
    ("vendor", "known"), [("torch_musa", TORCH_MUSA), ("metax", MACA_TORCH), ("cambricon", TORCH_MLU)]
)
def test_its_versions_are_those_that_the_plugin_takes(vendor, known):
    told = re.findall(r"\d+\.\d+", ROWS[vendor][3])
    assert set(known.working) <= set(told)


def test_the_example_of_a_chip_file_is_one(tmp_path, monkeypatch):
    example = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]
    file = tmp_path / "chips.json"
    file.write_text(example, encoding="utf-8")
    monkeypatch.setenv(user_chips.VARIABLE, str(file))
    (chip,) = user_chips.user_chips()
    assert (chip.vendor, chip.name) == ("metax", "C500")
    assert json.loads(example)[0]["peaks"][0]["source"] == chip.peaks[0].source


REPORTS = sorted((Path(__file__).resolve().parents[2] / "docs" / "conformance").glob("*.json"))


def test_there_are_conformance_reports():
    assert REPORTS


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_the_page_says_what_a_conformance_report_says(file):
    report = ConformanceReport.model_validate_json(file.read_text(encoding="utf-8"))
    chip = f"{report.chip}, emulated" if report.emulated else report.chip
    counts = " | ".join(str(count) for count in report.counts.values())
    assert f"| `{report.vendor}` | {chip} | [report](conformance/{file.name}) | {counts} |" in PAGE
    assert [result.id for result in report.results] == [check.id for check in CHECKS]
