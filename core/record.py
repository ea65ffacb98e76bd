"""The record of a run, from its plan, its events and how its processes ended: all from the run folder."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from core import metrics
from core.errors import UsageError
from core.events import read_events
from core.layout import coordinates
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

E = TypeVar("E", bound=ev.Event)
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
    device = _last(first_rank, ev.DeviceEvent)
    model = _last(first_rank, ev.ModelEvent)
    data = _last(first_rank, ev.DataEvent)
    steps = _of(first_rank, ev.StepEvent)
    window = _last(first_rank, ev.WindowEvent)
    parameters = None if model is None else _parameters(model)
    throughput = _throughput(plan, events, steps)
    unofficial = plan.unofficial_reason or _short_window(plan, window)
    said = dict.fromkeys(event.message for event in _of(events, ev.WarningEvent))  # ranks often say the same
    return rec.Record(
        id=record_id,
        status=status,
        reason=reason,
        source="measured",
        official=unofficial is None,
        unofficial_reason=unofficial,
        scaled_down=plan.scaled_down,
        emulated=plan.chip.emulated or (device is not None and device.device.emulated),
        weights=_weights(plan),
        data=data.data if data else ("generated" if plan.data.path is None else plan.data.name),
        case=plan.case,
        vendor=plan.vendor,
        chip=plan.chip.name,
        topology=plan.topology,
        engine=plan.engine,
        run=plan.run,
        precision=plan.hyper_parameters.precision,
        parallel=plan.parallel,
        fix_hp=plan.fix_hp,
        throughput=throughput,
        mfu=_mfu(plan, parameters, throughput),
        memory=_memory(events),
        loss=_loss(steps),
        aligned=alignment.aligned if alignment else None,
        alignment=alignment,
        telemetry=_telemetry(events, throughput),
        parameters=parameters,
        tokens_trained=len(steps) * plan.tokens_per_step if steps else None,
        epochs=window.epochs if window else None,
        data_manifest_sha256=data.manifest_sha256 if data else None,
        weights_sha256=model.weights_sha256 if model else None,
        environment=device.environment if device else {},
        math_mode=device.device.math_mode if device else {},
        optimizer=model.optimizer if model else None,
        warnings=(*said, *stragglers(events), *_spread_warning(plan, throughput)),
        started_unix_s=min((event.time_unix_s for event in events), default=None),
        duration_s=max((event.elapsed_s for event in events), default=None),
        command=outcome.command,
        plan=plan,
    )


def _weights(plan: Plan) -> Literal["random", "pretrained"]:
    return "random" if plan.weights is None else "pretrained"


def _short_window(plan: Plan, window: ev.WindowEvent | None) -> str | None:
    """The step count is planned from warm-up steps, so the window's length is only known afterwards."""
    if window is None or plan.chip.reference or window.window_s >= plan.measure.min_window_s:
        return None
    return f"the window took {window.window_s:.1f} s, less than {plan.measure.min_window_s} s"


def _parameters(model: ev.ModelEvent) -> rec.Parameters:
    return rec.Parameters(
        total=model.parameters_total, trainable=model.parameters_trainable, embedding=model.parameters_embedding
    )


def _throughput(plan: Plan, events: Sequence[ev.Event], steps: Sequence[ev.StepEvent]) -> rec.Throughput | None:
    """Tokens of all replicas over the slowest rank's window, per chip; the mean of the repeats.

    None unless every rank measured a window; of repeats that were cut short, those that all ranks measured.
    """
    world = plan.topology.world_size
    by_rank = [[w for w in _of(events, ev.WindowEvent) if w.rank == rank] for rank in range(world)]
    repeats = list(zip(*by_rank, strict=False))
    if not repeats:
        return None
    measured = [_rates(plan, windows) for windows in repeats]
    windows_s = [max(window.window_s for window in windows) for windows in repeats]
    rates = tuple(real for real, _ in measured)
    count = sum(windows[0].steps for windows in repeats)
    times_s = sorted(
        step.step_time_s for step in steps if step.phase == "measure" and step.step_time_s is not None
    )
    return rec.Throughput(
        tokens_per_second_per_chip=statistics.fmean(rates),
        padded_tokens_per_second_per_chip=statistics.fmean(padded for _, padded in measured),
        repeats=rates if len(rates) > 1 else (),
        spread=(max(rates) - min(rates)) / statistics.fmean(rates) if len(rates) > 1 else None,
        measured_steps=count,
        window_s=sum(windows_s),
        step_time_mean_s=sum(windows_s) / count,
        step_time_median_s=statistics.median(times_s),
        step_time_p5_s=_percentile(times_s, 5),
        step_time_p95_s=_percentile(times_s, 95),
    )


def _rates(plan: Plan, windows: Sequence[ev.WindowEvent]) -> tuple[float, float]:
    """Real and all tokens per second and chip of one window, which every rank measured."""
    # Every rank of a replica that is split over ranks reads the replica's tokens: they count once.
    read = [window for window in windows if coordinates(plan.parallel, window.rank).leads_replica]
    real = sum(window.real_tokens for window in read)
    padded = real + sum(window.padded_tokens for window in read)
    window_s, world = max(window.window_s for window in windows), plan.topology.world_size
    return real / window_s / world, padded / window_s / world


def _spread_warning(plan: Plan, throughput: rec.Throughput | None) -> list[str]:
    if throughput is None or throughput.spread is None or throughput.spread <= plan.measure.max_spread:
        return []
    return [
        f"the {len(throughput.repeats)} repeats spread by {throughput.spread:.1%}, "
        f"more than measure.max_spread ({plan.measure.max_spread:.1%})"
    ]


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """By the nearest rank: a value that was measured."""
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))]


def _mfu(plan: Plan, parameters: rec.Parameters | None, throughput: rec.Throughput | None) -> rec.Mfu:
    if parameters is None or throughput is None:
        return rec.Mfu(missing="nothing was measured")
    hp = plan.hyper_parameters
    work = metrics.Work(plan.model, parameters, hp.sequence_length, hp.activation_checkpointing)
    peak = plan.chip.peak(plan.compute_precision)
    return metrics.mfu(throughput.tokens_per_second_per_chip, work, peak)


def _memory(events: Sequence[ev.Event]) -> rec.Memory:
    """The fullest rank; where the vendor's reading has no device-wide peak, the largest telemetry sample."""
    readings = [event.memory for event in _of(events, ev.MemoryEvent)]
    sampled = [event.reading.memory_used_gib for event in _in_window(events, ev.TelemetryEvent)]
    device_peak = _largest(reading.peak_device_gib for reading in readings)
    return rec.Memory(
        peak_allocated_gib=_largest(reading.peak_allocated_gib for reading in readings),
        peak_reserved_gib=_largest(reading.peak_reserved_gib for reading in readings),
        peak_device_gib=device_peak if device_peak is not None else _largest(sampled),
        capacity_gib=_largest(reading.capacity_gib for reading in readings),
        allocation_retries=_sum(reading.allocation_retries for reading in readings),
        oom_count=_sum(reading.oom_count for reading in readings),
    )


def _loss(steps: Sequence[ev.StepEvent]) -> rec.Loss:
    losses = tuple(step.loss for step in steps if step.loss is not None)
    return rec.Loss(
        first=losses[0] if losses else None,
        last=losses[-1] if losses else None,
        curve=losses,
        grad_norm_curve=tuple(step.grad_norm for step in steps if step.grad_norm is not None),
        step_time_curve_s=tuple(step.step_time_s for step in steps if step.step_time_s is not None),
        memory_allocated_curve_gib=tuple(
            step.memory_allocated_gib for step in steps if step.memory_allocated_gib is not None
        ),
    )


def _telemetry(events: Sequence[ev.Event], throughput: rec.Throughput | None) -> rec.Telemetry:
    readings = [event.reading for event in _in_window(events, ev.TelemetryEvent)]
    powers = [r.power_w for r in readings if r.power_w is not None]
    power_w = statistics.fmean(powers) if powers else None
    energy = power_w / throughput.tokens_per_second_per_chip if power_w and throughput else None
    return rec.Telemetry(
        samples=len(readings),
        power_mean_w=power_w,
        power_max_w=max(powers, default=None),
        temperature_max_c=_largest(r.temperature_c for r in readings),
        utilisation_mean_percent=_mean(r.utilisation_percent for r in readings),
        sm_clock_mean_mhz=_mean(r.sm_clock_mhz for r in readings),
        clock_limits=_clock_limits([r.clock_limits for r in readings if r.clock_limits is not None]),
        energy_per_token_j=energy,
    )


def _clock_limits(samples: Sequence[tuple[str, ...]]) -> dict[str, float] | None:
    """Each reason's share of the samples; None where no sample tells."""
    if not samples:
        return None
    counts = Counter(reason for sample in samples for reason in sample)
    return {reason: count / len(samples) for reason, count in sorted(counts.items())}


def _in_window(events: Sequence[ev.Event], kind: type[E]) -> list[E]:
    """Events of ``kind`` that fell into their rank's measured window."""
    begins: dict[int, float] = {}
    for event in _of(events, ev.PhaseEvent):
        if event.phase == "measure":  # repeats follow one another
            begins.setdefault(event.rank, event.elapsed_s)
    ends = {e.rank: e.elapsed_s for e in _of(events, ev.WindowEvent)}
    forever = float("inf")
    return [
        e for e in _of(events, kind) if begins.get(e.rank, forever) <= e.elapsed_s <= ends.get(e.rank, forever)
    ]


def _of(events: Iterable[ev.Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def _last(events: Iterable[ev.Event], kind: type[E]) -> E | None:
    found = _of(events, kind)
    return found[-1] if found else None


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
