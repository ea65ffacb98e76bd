"""What there is to say of a run's state, in words and figures; None where nothing is known."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping

from core.progress.state import STAGES, RunState
from core.report.cells import percent
from schemas import event as ev
from schemas.plan import Plan

NAMED_RANKS = 4
"""Runs of neighbouring ranks that one line names."""


def line(event: ev.Event) -> str | None:
    """What is told of an event in a line of its own; on every rank but the first, only warnings are."""
    if isinstance(event, ev.WarningEvent):
        return f"warning: {event.message}"
    if isinstance(event, ev.CheckpointEvent) and event.rank == 0:
        return f"checkpoint {event.action}: {event.folder}, step {event.step}"
    return None


def title(plan: Plan) -> str:
    """Case, hardware config, run and engine in one line."""
    return f"{plan.case} {plan.topology} {plan.run} ({plan.engine}, {plan.hyper_parameters.precision})"


def clock(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def done(state: RunState) -> str | None:
    """``12/25``."""
    count, total = state.done
    if not count:
        return None
    return str(count) if total is None else f"{count}/{total}"


def loss(state: RunState) -> str | None:
    """Of the last step."""
    if state.last_step is None:
        return None
    return "not finite" if state.last_step.loss is None else f"{state.last_step.loss:.4f}"


def step_time(state: RunState) -> str | None:
    """The mean of the window."""
    seconds = state.step_time_s
    if seconds is None:
        return None
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def rate(state: RunState) -> str | None:
    """Tokens per second and chip."""
    value = state.tokens_per_second_per_chip
    return None if value is None else f"{value:,.0f}"


def mfu(state: RunState) -> str | None:
    """As the sheets' column has it, and by the PaLM paper."""
    shares = state.mfu
    if shares is None:
        return None
    published = percent(shares.flagperf)
    by_paper = None if shares.palm is None else f"PaLM {percent(shares.palm)}"
    return f"{published} ({by_paper})" if published and by_paper else published or by_paper


def memory(state: RunState) -> str | None:
    """The fullest rank's."""
    used = state.known(lambda rank: rank.memory_gib)
    if not used:
        return None
    rank, most = _largest(used)
    capacity = "" if state.capacity_gib is None else f"/{state.capacity_gib:.1f}"
    return f"{most:.1f}{capacity} GiB{_of_rank(state, rank)}"


def power(state: RunState) -> str | None:
    """The mean of a chip's watts, and the hottest chip."""
    watts = state.known(lambda rank: rank.reading.power_w)
    degrees = state.known(lambda rank: rank.reading.temperature_c)
    parts = [f"{statistics.fmean(watts.values()):.0f} W"] if watts else []
    if degrees:
        rank, most = _largest(degrees)
        parts.append(f"{most:.0f} °C{_of_rank(state, rank)}")
    return ", ".join(parts) or None


def stages(state: RunState) -> str:
    """Which ranks are in which phase, failed ones first; of the phase that has the most their number."""
    groups: dict[str, list[int]] = defaultdict(list)
    for rank in state.ranks.values():
        groups[rank.stage if rank.failed is None else f"failed ({rank.failed})"].append(rank.rank)
    most = max(groups, key=lambda name: len(groups[name]))
    return "; ".join(
        f"{name}: {_count(len(groups[name])) if name == most else _names(groups[name])}"
        for name in sorted(groups, key=_order)
    )


def stalled(state: RunState, now_s: float) -> str | None:
    """Whom the others wait for, or that nobody gets on."""
    late = state.behind(now_s)
    if not late:
        silent_s = state.silent_s(now_s)
        return None if silent_s is None else f"no step for {clock(silent_s)}"
    first = late[0]
    where = f"step {first.step}" if first.step else first.stage
    others = f" and {len(late) - 1} more" if len(late) > 1 else ""
    return f"rank {first.rank} at {where} for {clock(now_s - first.heard_s)}{others}"


def slowest(state: RunState) -> str | None:
    """The rank whose device is the slowest alone, and the one that waits the longest for data."""
    if len(state.ranks) == 1:
        return None
    told = []
    products_s = state.known(lambda rank: rank.product_s)
    if len(products_s) > 1:
        rank, most = _largest(products_s)
        others_s = statistics.median(value for other, value in products_s.items() if other != rank)
        told.append(f"rank {rank} (device {most / others_s:.2f}x)")
    waits = state.known(lambda rank: rank.window.waited_s / rank.window.seconds if rank.window.steps else None)
    if waits:
        rank, most = _largest(waits)
        told.append(f"rank {rank} (data {most:.1%})")
    return ", ".join(told) or None


def _largest(values: Mapping[int, float]) -> tuple[int, float]:
    rank = max(values, key=lambda rank: values[rank])
    return rank, values[rank]


def _of_rank(state: RunState, rank: int) -> str:
    return f" (rank {rank})" if len(state.ranks) > 1 else ""


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else -1


def _count(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


def _names(ranks: list[int]) -> str:
    """``rank 3, 17, 40-42``; of many only the first."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    names = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    more = f" and more, {len(ranks)} in all" if len(names) > NAMED_RANKS else ""
    return f"rank {', '.join(names[:NAMED_RANKS])}{more}"
