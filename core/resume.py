"""Going on with a config's runs: a run's folder holds the plan, and the records beside it say what is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import runner, settings
from core.errors import UsageError
from core.record import RECORD_FILE, read_plan, read_record
from core.selection import Selection
from core.worker import PLAN_FILE
from schemas.hyperparameters import OverrideValue
from schemas.plan import Plan
from schemas.record import Record

_SECTIONS = (*settings.SECTIONS, *settings.OPTIONAL_SECTIONS, *settings.RUN_SECTIONS)


def options(run_dir: Path) -> runner.Options:
    """The options that planned the run in ``run_dir``, for all runs of its config, without those that are done.

    UsageError when the folder is not a run's.
    """
    if not (run_dir / PLAN_FILE).is_file():
        raise UsageError(
            f"{run_dir} is not the folder of a run: {PLAN_FILE} is missing",
            "name one under --out; on several nodes that do not share a disk, each has one of the same name",
        )
    plan = read_plan(run_dir)
    selection = Selection(
        case=plan.case_location,
        config=plan.config,
        vendor=f"{plan.vendor}@{plan.vendor_distribution}",
        engine=plan.engine if plan.origins.get("engine") == "--engine" else None,
        sets={key: _value(plan, key) for key, origin in plan.origins.items() if origin == "--set"},
    )
    out = run_dir.absolute().parent
    return runner.Options(selection, out, done=_done(out))


def _value(plan: Plan, key: str) -> OverrideValue:
    """The value of a dotted setting; what is not a plain one (a unit) as its text."""
    section, _, name = key.rpartition(".")
    holder: Any = getattr(plan, section) if section in _SECTIONS else plan.hyper_parameters
    value = plan.weights if key == "weights" else getattr(holder, name)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _done(out: Path) -> tuple[Record, ...]:
    """Records of runs that ended well."""
    records = [read_record(file) for file in sorted(out.glob(f"*/{RECORD_FILE}"))]
    return tuple(record for record in records if record.status == "ok")
