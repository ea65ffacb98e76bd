"""Reference curves: where they lie, how one is found, and how one is made of a run's record."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from core import cases
from core.align.refusals import refusals_of_curve, refusals_of_run, refused
from core.errors import UsageError
from core.report.load import load_reference
from schemas.base import explain
from schemas.record import Record
from schemas.reference import ReferenceCurve

FOLDER = "references"
"""In the case's folder."""


def find_reference(what: str, record: Record) -> ReferenceCurve:
    """The reference in file ``what``, or the one of that name that lives with the record's case.

    UsageError lists the case's references where there is none of that name.
    """
    if Path(what).is_file():
        return load_reference(Path(what))
    folder = _folder(record)
    file = folder / f"{what}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "it has none"
        raise UsageError(
            f"no file, and no reference of case {record.case!r}, is called {what!r}",
            f"give a file, or one of the case's references: {known}",
        )
    return load_reference(file)


def make_reference(record: Record, name: str) -> ReferenceCurve:
    """A reference of the run's curves; UsageError, with every reason, where they are not fit for one.

    Only the steps that the plan declares are kept: how many more an accelerator takes to fill its window depends
    on its speed, and a slower one must have as many.
    """
    plan, found = record.plan, refusals_of_run(record)
    if plan is None or found:
        raise refused(f"{record.id} cannot be made a reference", found)
    steps = plan.measure.warmup_steps + plan.measure.steps
    losses = record.loss.curve[:steps]
    if flaws := refusals_of_curve(losses):
        raise refused(f"{record.id} cannot be made a reference", flaws)
    try:
        return ReferenceCurve.model_validate(
            {
                "id": name,
                "record": record.id,
                "data": record.data,
                "data_manifest_sha256": record.data_manifest_sha256,
                "weights": record.weights,
                "weights_sha256": record.weights_sha256,
                "losses": losses,
                "gradient_norms": record.loss.grad_norm_curve[:steps],
                "environment": record.environment,
                "math_mode": record.math_mode,
                "plan": plan,
            }
        )
    except ValidationError as error:
        raise UsageError(explain(error, f"reference {name!r} of {record.id}"), "correct the name") from error


def write_reference(reference: ReferenceCurve, record: Record) -> Path:
    """Keep ``reference`` with the record's case; UsageError where one of that name is kept already."""
    file = _folder(record) / f"{reference.id}.json"
    if file.exists():
        raise UsageError(f"{file} is there already", "choose another name, or remove it first")
    try:
        file.parent.mkdir(exist_ok=True)
        file.write_text(reference.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written: {error.strerror}", "work on a case folder of your own"
        ) from error
    return file


def _folder(record: Record) -> Path:
    """Of the case as its plan found it, or by name where the record comes from another machine."""
    plan = record.plan
    location = plan.case_location if plan and Path(plan.case_location).is_dir() else record.case
    return cases.resolve(location).folder / FOLDER
