"""Ranks that keep the others waiting, as far as it can be told.

All ranks of a synchronous step take the same time, so step times name nobody. What differs is how long each waits
for its data, and how fast its device is alone.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from schemas import event as ev

SLOW_DEVICE_FACTOR = 1.5
"""A device counts as slow when its product takes this many times the median rank's."""
DATA_WAIT_SHARE = 0.1
"""A rank counts as waiting for data when that is this share of its steps, and twice the other ranks' median."""


def stragglers(events: Sequence[ev.Event]) -> list[str]:
    """One line a rank that is off; empty for a single rank."""
    return _slow_devices(events) + _waiting_for_data(events)


def _slow_devices(events: Sequence[ev.Event]) -> list[str]:
    times_s = {event.rank: event.product_s for event in events if isinstance(event, ev.SpeedEvent)}
    return [
        f"straggler: rank {rank}'s device alone takes {time_s / others_s:.1f} times the others' time "
        f"({time_s * 1e6:.0f} us for a product)"
        for rank, time_s, others_s in _with_others(times_s)
        if time_s > SLOW_DEVICE_FACTOR * others_s
    ]


def _waiting_for_data(events: Sequence[ev.Event]) -> list[str]:
    waits, totals = defaultdict(list), defaultdict(list)
    for event in events:
        if isinstance(event, ev.StepEvent) and event.phase == "measure" and event.data_wait_s is not None:
            waits[event.rank].append(event.data_wait_s)
            totals[event.rank].append(event.step_time_s or 0.0)
    means_s = {rank: statistics.fmean(values) for rank, values in waits.items()}
    return [
        f"straggler: rank {rank} waits {wait_s:.3g} s for its data in each step, the others {others_s:.3g} s"
        for rank, wait_s, others_s in _with_others(means_s)
        if wait_s > DATA_WAIT_SHARE * statistics.fmean(totals[rank]) and wait_s > 2 * others_s
    ]


def _with_others(values: Mapping[int, float]) -> list[tuple[int, float, float]]:
    """Each rank with its value and the median of the other ranks'."""
    return [
        (rank, value, statistics.median(others))
        for rank, value in sorted(values.items())
        if (others := [other for key, other in values.items() if key != rank])
    ]
