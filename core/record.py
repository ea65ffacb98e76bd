"""The record of a run, from its plan, its events and how its processes ended: all from the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from core import metrics, summary
from core.errors import UsageError
from core.events import last_of_kind, of_kind, read_events
from core.outcome import OUTCOME_FILE, Outcome, status_of
from core.stragglers import stragglers
from core.worker import PLAN_FILE
from schemas import event as ev
from schemas import record as rec
from schemas.base import Schema, explain
from schemas.plan import Plan

RECORD_FILE = "record.json"
ALIGNMENT_FILE = "alignment.json"
"""Left by ``align``; a record that is built anew keeps the verdict."""

S = TypeVar("S", bound=Schema)


def build_record(run_dir: Path) -> rec.Record:
    """The record of the run in ``run_dir``, whatever state it was left in.

    UsageError when a file there is not what a run wrote, or the folder's name cannot be a record's.
    """
    plan = _read(run_dir / PLAN_FILE, Plan)
    outcome = Outcome(command="unknown: the launcher did not end by itself")
    if (run_dir / OUTCOME_FILE).exists():
        outcome = _read(run_dir / OUTCOME_FILE, Outcome)
    alignment = None
    if (run_dir / ALIGNMENT_FILE).exists():
        alignment = _read(run_dir / ALIGNMENT_FILE, rec.Alignment)
    events = read_events(run_dir)
    try:
        return _build(plan, events, outcome, run_dir.name, alignment)
    except ValidationError as error:
        raise UsageError(
            explain(error, str(run_dir)), "give the folder its name, and its files their text, back"
        ) from error


def write_record(run_dir: Path) -> rec.Record:
    """Build the record and keep it in the run folder."""
    record = build_record(run_dir)
    (run_dir / RECORD_FILE).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def read_plan(run_dir: Path) -> Plan:
    """The plan of the run in ``run_dir``; UsageError names file, field and value that are wrong."""
    return _read(run_dir / PLAN_FILE, Plan)


def read_record(path: Path) -> rec.Record:
    """A record file; UsageError names file, field and value that are wrong."""
    return _read(path, rec.Record)


def _read(path: Path, schema: type[S]) -> S:
    try:
        return schema.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(explain(error, str(path)), f"correct {path.name}") from error


def _build(
    plan: Plan,
    events: Sequence[ev.Event],
    outcome: Outcome,
    record_id: str,
    alignment: rec.Alignment | None,
) -> rec.Record:
    status, reason = status_of(plan, events, outcome)
    first_rank = [event for event in events if event.rank == 0]
    device = last_of_kind(first_rank, ev.DeviceEvent)
    model = last_of_kind(first_rank, ev.ModelEvent)
    parameters = None if model is None else summary.parameters(model)
    throughput = summary.throughput(plan, events)
    emulated = plan.chip.emulated or (device is not None and device.device.emulated)
    unofficial = plan.unofficial_reason or _short_window(plan, last_of_kind(first_rank, ev.WindowEvent))
    said = dict.fromkeys(event.message for event in of_kind(events, ev.WarningEvent))  # ranks often say the same
    return rec.Record(
        **_planned(plan),
        **_told(plan, first_rank),
        id=record_id,
        status=status,
        reason=reason,
        source="measured",
        official=unofficial is None,
        unofficial_reason=unofficial,
        emulated=emulated,
        throughput=throughput,
        mfu=rec.Mfu(missing="an emulated device") if emulated else _mfu(plan, parameters, throughput),
        memory=summary.memory(events),
        aligned=alignment.aligned if alignment else None,
        alignment=alignment,
        telemetry=summary.telemetry(events, throughput),
        parameters=parameters,
        tokens_trained=summary.tokens_trained(plan, events),
        warnings=(*said, *stragglers(events), *_spread_warning(plan, throughput)),
        startup_seconds=summary.startup_seconds(first_rank, outcome.begun_unix_s),
        started_unix_s=min((event.time_unix_s for event in events), default=None),
        duration_s=max((event.elapsed_s for event in events), default=None),
        command=outcome.command,
    )


def _planned(plan: Plan) -> dict[str, Any]:
    """The record's fields that are the plan's."""
    return {
        "plan": plan,
        "case": plan.case,
        "vendor": plan.vendor,
        "chip": plan.chip.name,
        "topology": plan.topology,
        "engine": plan.engine,
        "run": plan.run,
        "precision": plan.hyper_parameters.precision,
        "parallel": plan.parallel,
        "fix_hp": plan.fix_hp,
        "scaled_down": plan.scaled_down,
    }


def _told(plan: Plan, first_rank: Sequence[ev.Event]) -> dict[str, Any]:
    """The record's fields that rank 0 speaks for all of: machine, model, data and what became of the training."""
    device = last_of_kind(first_rank, ev.DeviceEvent)
    model = last_of_kind(first_rank, ev.ModelEvent)
    data = last_of_kind(first_rank, ev.DataEvent)
    window = last_of_kind(first_rank, ev.WindowEvent)
    traced = last_of_kind(first_rank, ev.ProfileEvent)
    return {
        "environment": device.environment if device else {},
        "math_mode": device.device.math_mode if device else {},
        "weights": model.weights if model else _weights(plan),
        "weights_sha256": model.weights_sha256 if model else None,
        "optimizer": model.optimizer if model else None,
        "data": data.data if data else ("generated" if plan.data.path is None else plan.data.name),
        "data_manifest_sha256": data.manifest_sha256 if data else None,
        "loss": summary.loss(of_kind(first_rank, ev.StepEvent)),
        "epochs": window.epochs if window else None,
        "accuracy": {event.benchmark: event.accuracy for event in of_kind(first_rank, ev.AccuracyEvent)},
        "profile": traced.profile if traced else None,
    }


def _weights(plan: Plan) -> Literal["random", "pretrained"]:
    return "random" if plan.weights is None else "pretrained"


def _short_window(plan: Plan, window: ev.WindowEvent | None) -> str | None:
    """What the plan cannot know: steps are planned from warm-up ones, or are what is left of the epochs."""
    if window is not None and plan.measure.epochs is not None and window.steps < plan.measure.steps:
        return f"{plan.measure.epochs} epochs left {window.steps} measured steps, fewer than {plan.measure.steps}"
    if window is None or plan.chip.reference or window.window_s >= plan.measure.min_window_s:
        return None
    return f"the window took {window.window_s:.1f} s, less than {plan.measure.min_window_s} s"


def _mfu(plan: Plan, parameters: rec.Parameters | None, throughput: rec.Throughput | None) -> rec.Mfu:
    if parameters is None or throughput is None:
        return rec.Mfu(missing="nothing was measured")
    work, peak = metrics.Work.of(plan, parameters, throughput), plan.chip.peak(plan.compute_precision)
    return metrics.mfu(throughput.tokens_per_second_per_chip, work, peak)


def _spread_warning(plan: Plan, throughput: rec.Throughput | None) -> list[str]:
    if throughput is None or throughput.spread is None or throughput.spread <= plan.measure.max_spread:
        return []
    return [
        f"the {len(throughput.repeats)} repeats spread by {throughput.spread:.1%}, "
        f"more than measure.max_spread ({plan.measure.max_spread:.1%})"
    ]
