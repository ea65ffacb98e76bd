"""``docs/conformance.md`` lists the checks as they are."""

from __future__ import annotations

from pathlib import Path

from core.testing.catalog import CHECKS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "conformance.md").read_text(encoding="utf-8")


def test_the_page_has_every_check_in_order() -> None:
    rows = [f"| `{c.id}` | `{c.hook}` | {c.place} | {c.proves} |" for c in CHECKS]
    listed = [line for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 5]
    assert listed == rows
