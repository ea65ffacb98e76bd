"""Tables in Markdown of what the benchmarks measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tests.benchmarks.work import Comparison, Measured, Result

OURS = "ours"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row its head."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def side_by_side(found: Comparison) -> str:
    """Mean and spread of each contender, and ours over it; a single window has no spread."""
    ours = next((c for c in found.contenders if c.name == OURS), None)
    head = ("contender", "what", "LBS", "token/p/s", "windows", "spread", "GiB", "loss", "ours is")
    table = markdown(head, [_row(contender, ours) for contender in found.contenders])
    return f"{_title(found)}\n\n{table}\n\n{verdict(found)} {_versions(found)}".rstrip()


def verdict(found: Comparison) -> str:
    """Ours over the best other, in a sentence."""
    others = [c for c in found.contenders if c.name != OURS and c.rates]
    ours = next((c for c in found.contenders if c.name == OURS and c.rates), None)
    if ours is None or not others:
        return f"Nothing to compare: {'no other contender was' if ours else 'ours was not'} measured."
    best = max(others, key=lambda c: statistics.fmean(c.rates))
    ratio = statistics.fmean(ours.rates) / statistics.fmean(best.rates)
    return f"Ours is {ratio:.3f} times the best other, `{best.name}`."


def _title(found: Comparison) -> str:
    work = found.work
    return (
        f"**{work.case}, {found.topology}**: sequences of {work.sequence_length}, "
        f"{work.tokens_per_step:,} tokens a step and GPU, {work.precision}, "
        f"optimizer state {work.optimizer_state}. `{found.command}`"
    )


def _versions(found: Comparison) -> str:
    """Of everything that any contender found installed, and of the device."""
    versions: dict[str, str] = {}
    for contender in found.contenders:
        for result in contender.results:
            versions |= result.versions
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"With {told}." if told else ""


def _row(contender: Measured, ours: Measured | None) -> list[str]:
    rates, last = contender.rates, contender.results[-1] if contender.results else None
    name = f"`{contender.name}`"
    if not rates or last is None:
        why = "not run" if last is None else f"{last.status}: {last.reason}"
        return [name, contender.what, "", f"/ ({why})", "0", "", "", "", ""]
    mean = statistics.fmean(rates)
    spread = "/" if len(rates) == 1 else f"{(max(rates) - min(rates)) / mean:.1%}"
    over = f"{statistics.fmean(ours.rates) / mean:.2f}x" if ours is not None and ours.rates else "/"
    fine = [result for result in contender.results if result.status == "ok"]
    return [
        name,
        contender.what,
        str(fine[-1].micro_batch),
        f"{mean:,.0f}",
        str(len(rates)),
        spread,
        _memory(fine[-1]),
        f"{fine[-1].first_loss:.2f} to {fine[-1].last_loss:.2f}",
        "" if contender.name == OURS else over,
    ]


def _memory(result: Result) -> str:
    return "/" if result.peak_memory_gib is None else f"{result.peak_memory_gib:.1f}"
