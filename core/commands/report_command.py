"""``report``: a case's README from its reports and records, or a run's record and report from its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from core import cases, runner
from core.errors import UsageError
from core.worker import PLAN_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``report``."""
    parser.add_argument(
        "what",
        metavar="CASE|RUN_DIR",
        help="a case, or a run's folder, where record.json and report.md are written anew",
    )
    parser.add_argument("--lang", choices=("zh", "en"), default="zh", help="language of the sheets (default: zh)")
    parser.add_argument("--write", action="store_true", help="write the case's README.md instead of printing it")


def execute(arguments: argparse.Namespace, console: Console) -> int:
    """Render; a run's folder gets its record and report anew."""
    folder = Path(arguments.what)
    if (folder / PLAN_FILE).is_file():
        if arguments.write:
            raise UsageError(f"{folder} is a run's folder: --write is for a case", "leave out --write")
        record = runner.finish(folder.absolute(), console, arguments.lang)
        print((folder / "report.md").read_text(encoding="utf-8"), end="")
        return runner.exit_code([record])
    from core.report.load import load_records, load_reports
    from core.report.readme import render_case_readme

    loaded = cases.resolve(arguments.what, "run's folder")
    reports, records = load_reports(loaded.folder / "reports"), load_records(loaded.folder / "records")
    text = render_case_readme(loaded.case, reports, records, arguments.lang)
    if not arguments.write:
        print(text, end="")
        return 0
    if arguments.lang != "zh":
        raise UsageError("--write keeps README.md in zh", "leave out --lang, or redirect the output to a file")
    target = loaded.folder / "README.md"
    target.write_text(text, encoding="utf-8")
    print(target)
    return 0
