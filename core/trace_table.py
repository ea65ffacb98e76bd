"""From a trace in Chrome's format to seconds by what the device did. Imports no torch.

Every moment, from the end of the leading step's last kernel to that of all, counts once: for the kind, of those
at work in that moment, that comes first in ``_BY_PRIORITY``, so that communication counts only where nothing else
runs. Without an accelerator the operators take the kernels' place.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

from schemas.profile import Profile, Share

LEADING: Final = "accelmark::leading"
"""A step that goes before those that count."""
LOSS: Final = "accelmark::loss"
OPTIMIZER: Final = "accelmark::optimizer"
COMMUNICATION: Final = "accelmark::communication"

_RANGES: Final[Mapping[str, Share]] = {LOSS: "loss", OPTIMIZER: "optimizer", COMMUNICATION: "communication"}
_FSDP: Final = "FSDP::"
"""How the ranges begin in which FSDP2 gathers, reduces, and copies from and to what it sends."""
_NAMES: Final[Sequence[tuple[Share, re.Pattern[str]]]] = (
    (
        "communication",
        re.compile(r"nccl|mccl|cncl|gloo:|^c10d::|allreduce|allgather|reducescatter|^memcpy ptop", re.IGNORECASE),
    ),
    ("attention", re.compile(r"flash|fmha|attention|sdpa", re.IGNORECASE)),
    # nvjet are cuBLAS's kernels for Hopper, triton_tem the products that torch.compile writes.
    ("matrix_products", re.compile(r"gemm|nvjet|cutlass|cublas|matmul|triton_tem|^aten::(addmm|mm|bmm|baddbmm)$")),
)
_BY_PRIORITY: Final[Sequence[Share]] = (
    "optimizer", "loss", "attention", "matrix_products", "memory_bound", "communication",
)  # fmt: skip
_RANGE: Final = "user_annotation"
"""The kind of a marked range on the host; the profiler has its own idea of what it is on the device."""
_KERNELS: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_LAUNCHING: Final = ("_runtime", "_driver")
"""How the kinds of calls end that launch kernels: ``cuda_runtime``, ``cuda_driver``, other vendors' likewise."""


class _Range(NamedTuple):
    start: float
    end: float
    share: Share


class _Span(NamedTuple):
    start: float
    end: float
    share: Share
    begun: float
    """When the host launched it."""


def read_profile(file: Path, steps: int, name: str) -> Profile:
    """What ``file`` tells, a gzipped trace of ``steps`` steps behind a leading one, noted as ``name``."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        events = [event for event in json.load(opened)["traceEvents"] if event.get("ph") == "X"]
    spans = _spans(events, _KERNELS) or _spans(events, {"cpu_op"})
    leading = [event for event in events if event.get("cat") == _RANGE and event["name"] == LEADING]
    led_until = max(event["ts"] + event["dur"] for event in leading)
    start = max((span.end for span in spans if span.begun <= led_until), default=led_until)
    microseconds = _add_up([span for span in spans if span.end > start], start)
    seconds = {share: microseconds[share] / 1e6 / steps for share in get_args(Share)}
    return Profile(steps=steps, step_time_s=sum(seconds.values()), seconds=seconds, trace=name)


def _spans(events: Sequence[Mapping[str, Any]], kinds: frozenset[str] | set[str]) -> list[_Span]:
    """Events of ``kinds``; one that a thread began within one of its marked ranges belongs to that.

    A kernel is begun by the call that launched it. The profiler's own ranges on the device lack kernels that a
    compiler launches by the driver's interface.
    """
    ranges: defaultdict[Any, list[_Range]] = defaultdict(list)
    launches: dict[Any, tuple[Any, float]] = {}
    for event in events:
        if event.get("cat") == _RANGE and (marked := _marked(event["name"])):
            ranges[event["tid"]].append(_Range(event["ts"], event["ts"] + event["dur"], marked))
        elif str(event.get("cat")).endswith(_LAUNCHING):
            launches[event.get("args", {}).get("correlation")] = event["tid"], event["ts"]
    timelines = {thread: _Timeline(found) for thread, found in ranges.items()}
    spans = []
    for event in events:
        if event.get("cat") in kinds:
            thread, begun = launches.get(event.get("args", {}).get("correlation"), (event["tid"], event["ts"]))
            marked = timelines[thread].at(begun) if thread in timelines else None
            spans.append(_Span(event["ts"], event["ts"] + event["dur"], _share(event["name"], marked), begun))
    return spans


def _marked(name: str) -> Share | None:
    return "communication" if name.startswith(_FSDP) else _RANGES.get(name)


class _Timeline:
    """The marked ranges of one thread, which lie within each other or side by side."""

    def __init__(self, ranges: Sequence[_Range]) -> None:
        self._moments: list[float] = []
        self._innermost: list[Share | None] = []
        entered: list[_Range] = []
        for span in sorted(ranges, key=lambda span: (span.start, -span.end)):
            self._leave(entered, span.start)
            entered.append(span)
            self._note(span.start, span.share)
        self._leave(entered, math.inf)

    def at(self, moment: float) -> Share | None:
        """What the innermost range around ``moment`` is marked as."""
        index = bisect_right(self._moments, moment) - 1
        return self._innermost[index] if index >= 0 else None

    def _leave(self, entered: list[_Range], moment: float) -> None:
        while entered and entered[-1].end <= moment:
            end = entered.pop().end
            self._note(end, entered[-1].share if entered else None)

    def _note(self, moment: float, share: Share | None) -> None:
        self._moments.append(moment)
        self._innermost.append(share)


def _share(name: str, marked: Share | None) -> Share:
    share: Share = next((share for share, pattern in _NAMES if pattern.search(name)), "memory_bound")
    return marked if marked and share != "communication" else share


def _add_up(spans: Sequence[_Span], start: float) -> Mapping[Share, float]:
    """Microseconds by share, from ``start`` to the last span's end."""
    edges = sorted([(max(s.start, start), 1, s.share) for s in spans] + [(s.end, -1, s.share) for s in spans])
    total: defaultdict[Share, float] = defaultdict(float)
    active: defaultdict[Share, float] = defaultdict(float)
    last = start
    for moment, change, share in edges:
        total[next((busy for busy in _BY_PRIORITY if active[busy]), "host")] += moment - last
        active[share] += change
        last = moment
    return total
