"""What a run's events add up to: throughput, memory, loss and telemetry, over all ranks and windows."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from core.events import Kind, of_kind
from core.layout import coordinates
from schemas import event as ev
from schemas import record as rec
from schemas.plan import Plan


def parameters(model: ev.ModelEvent) -> rec.Parameters:
    """As counted from the built model."""
    return rec.Parameters(
        total=model.parameters_total,
        trainable=model.parameters_trainable,
        embedding=model.parameters_embedding,
        forward_only=model.parameters_forward_only,
    )


def tokens_trained(plan: Plan, events: Sequence[ev.Event]) -> int | None:
    """Tokens of the data, without padding, that all replicas have trained on; None before the first step."""
    by_rank = Counter[int]()
    for step in of_kind(events, ev.StepEvent):
        by_rank[step.rank] += step.real_tokens
    return round(_of_all_replicas(plan, by_rank)) if by_rank else None


def throughput(plan: Plan, events: Sequence[ev.Event]) -> rec.Throughput | None:
    """Tokens of all replicas over the slowest rank's window, per chip; the mean of the repeats.

    None unless every rank measured a window; of repeats that were cut short, those that all ranks measured. Step
    times are rank 0's.
    """
    windows_of = of_kind(events, ev.WindowEvent)
    by_rank = [[w for w in windows_of if w.rank == rank] for rank in range(plan.topology.world_size)]
    repeats = list(zip(*by_rank, strict=False))
    if not repeats:
        return None
    measured = [_rates(plan, windows) for windows in repeats]
    read = [window for windows in repeats for window in windows]
    windows_s = [max(window.window_s for window in windows) for windows in repeats]
    rates = tuple(real for real, _ in measured)
    count = sum(windows[0].steps for windows in repeats)
    times_s = sorted(
        step.step_time_s
        for step in of_kind(events, ev.StepEvent)
        if step.rank == 0 and step.phase == "measure" and step.step_time_s is not None
    )
    return rec.Throughput(
        tokens_per_second_per_chip=statistics.fmean(rates),
        padded_tokens_per_second_per_chip=statistics.fmean(padded for _, padded in measured),
        attended_length=_attended_length(read),
        images_per_token=sum(window.images for window in read) / sum(window.real_tokens for window in read),
        repeats=rates if len(rates) > 1 else (),
        spread=(max(rates) - min(rates)) / statistics.fmean(rates) if len(rates) > 1 else None,
        measured_steps=count,
        window_s=sum(windows_s),
        step_time_mean_s=sum(windows_s) / count,
        step_time_median_s=statistics.median(times_s),
        step_time_p5_s=_percentile(times_s, 5),
        step_time_p95_s=_percentile(times_s, 95),
    )


def _attended_length(windows: Sequence[ev.WindowEvent]) -> float | None:
    squares = [window.squared_lengths for window in windows if window.squared_lengths is not None]
    return sum(squares) / sum(window.real_tokens for window in windows) if len(squares) == len(windows) else None


def _rates(plan: Plan, windows: Sequence[ev.WindowEvent]) -> tuple[float, float]:
    """Real and all tokens per second and chip of one window, which every rank measured."""
    window_s = max(window.window_s for window in windows)
    real = {window.rank: window.real_tokens for window in windows}
    both = {window.rank: window.real_tokens + window.padded_tokens for window in windows}
    return tokens_per_second_per_chip(plan, real, window_s), tokens_per_second_per_chip(plan, both, window_s)


def tokens_per_second_per_chip(plan: Plan, tokens: Mapping[int, float], seconds: float) -> float:
    """The rate of all chips over their number, from what each rank (rank -> tokens) read in ``seconds``."""
    return _of_all_replicas(plan, tokens) / seconds / plan.topology.world_size


def _of_all_replicas(plan: Plan, tokens: Mapping[int, float]) -> float:
    """The tokens that all replicas read, from what each rank (rank -> tokens) read.

    Every rank of a replica that is split over ranks reads the replica's tokens: they count once. Replicas of which
    no rank is among ``tokens``, on other nodes, count as the mean of the others.
    """
    replicas = {coordinates(plan.parallel, rank).data: count for rank, count in tokens.items()}
    return sum(replicas.values()) * plan.parallel.dp / len(replicas)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """By the nearest rank: a value that was measured."""
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100) - 1))]


_STARTS: Mapping[ev.Phase, rec.StartPhase] = {
    "start": "imports",
    "device": "device",
    "data": "data",
    "setup": "setup",
}
"""Phases that are one part of the start each, until the next one."""


def startup_seconds(first_rank: Sequence[ev.Event], begun_unix_s: float | None) -> dict[rec.StartPhase, float]:
    """Where the time from ``begun_unix_s`` to the first window went, by rank 0; empty without a window."""
    phases = of_kind(first_rank, ev.PhaseEvent)
    steps = of_kind(first_rank, ev.StepEvent)
    at = {event.phase: event.elapsed_s for event in reversed(phases)}  # repeats measure again
    if "measure" not in at or not steps or steps[0].step_time_s is None:
        return {}
    found: dict[rec.StartPhase, float] = {}
    if begun_unix_s is not None:
        found["launch"] = max(0.0, phases[0].time_unix_s - begun_unix_s)
    for before, after in itertools.pairwise(phases):
        if before.phase in _STARTS:
            found[_STARTS[before.phase]] = after.elapsed_s - before.elapsed_s
    warmed_up_s = at["measure"] - at["warmup"]
    found["first_step"] = min(steps[0].step_time_s, warmed_up_s)
    return found | {"warm_up": warmed_up_s - found["first_step"]}


def memory(events: Sequence[ev.Event]) -> rec.Memory:
    """The fullest rank; where the vendor's reading has no device-wide peak, the largest telemetry sample."""
    readings = [event.memory for event in of_kind(events, ev.MemoryEvent)]
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


def loss(steps: Sequence[ev.StepEvent]) -> rec.Loss:
    """Curves of one rank's steps."""
    losses = tuple(step.loss for step in steps if step.loss is not None)
    return rec.Loss(
        first_step=steps[0].step if steps else 1,
        first=losses[0] if losses else None,
        last=losses[-1] if losses else None,
        curve=losses,
        grad_norm_curve=tuple(step.grad_norm for step in steps if step.grad_norm is not None),
        step_time_curve_s=tuple(step.step_time_s for step in steps if step.step_time_s is not None),
        memory_allocated_curve_gib=tuple(
            step.memory_allocated_gib for step in steps if step.memory_allocated_gib is not None
        ),
    )


def telemetry(events: Sequence[ev.Event], measured: rec.Throughput | None) -> rec.Telemetry:
    """Over the measured windows; energy per token is the mean power over the throughput ``measured``."""
    readings = [event.reading for event in _in_window(events, ev.TelemetryEvent)]
    powers = [r.power_w for r in readings if r.power_w is not None]
    power_w = statistics.fmean(powers) if powers else None
    energy = power_w / measured.tokens_per_second_per_chip if power_w and measured else None
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


def _in_window(events: Sequence[ev.Event], kind: type[Kind]) -> list[Kind]:
    """Events of ``kind`` that fell into their rank's measured window."""
    begins: dict[int, float] = {}
    for event in of_kind(events, ev.PhaseEvent):
        if event.phase == "measure":  # repeats follow one another
            begins.setdefault(event.rank, event.elapsed_s)
    ends = {e.rank: e.elapsed_s for e in of_kind(events, ev.WindowEvent)}
    forever = float("inf")
    return [
        e for e in of_kind(events, kind) if begins.get(e.rank, forever) <= e.elapsed_s <= ends.get(e.rank, forever)
    ]


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
