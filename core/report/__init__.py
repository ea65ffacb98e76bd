"""Sheets: published ones from their data, measured ones from records, both through one Markdown renderer."""

from core.report.check import Finding, MfuBasis, check
from core.report.load import load_records, load_reports
from core.report.measured import measured_report
from core.report.readme import render_case_readme
from core.report.render import render_report
from core.report.run_report import write_run_report

__all__ = [
    "Finding",
    "MfuBasis",
    "check",
    "load_records",
    "load_reports",
    "measured_report",
    "render_case_readme",
    "render_report",
    "write_run_report",
]
