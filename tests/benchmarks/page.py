"""The measured part of docs/speed.md, rendered from committed results and records.

``python -m tests.benchmarks.page --write`` puts it between the page's marks; without ``--write`` it is printed.
Results are what the benchmarks left in ``runs/``, copied into the folder of their kind under ``results/``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from core.report.load import load_records
from schemas.base import Schema
from schemas.hyperparameters import Collectives, HyperParameters
from schemas.profile import Share
from schemas.record import Record, StartPhase
from tests.benchmarks.overhead import Overhead
from tests.benchmarks.roofline import Part, Roofline
from tests.benchmarks.tables import markdown, side_by_side
from tests.benchmarks.work import Comparison

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
NOTHING = "Nothing committed yet."
SPLITS = """
Runs of a row do the same work a chip and step. How they split it into micro-batches, and what they compute again
so that it fits, is their own affair: where the state is sharded, more chips leave more room, so that a chip can be
faster among more of them. Runs of other sessions are runs on other chips, a few percent apart."""

S = TypeVar("S", bound=Schema)


def measured(results: Path, records: Sequence[Record]) -> str:
    """All tables, each beneath its heading."""
    sections = (
        ("Side by side", ["\n\n".join(map(side_by_side, _read(results / "side_by_side", Comparison)))]),
        ("Share of the limit", _limits(_read(results / "roofline", Roofline), records)),
        ("What the framework adds to a step", _overheads(_read(results / "overhead", Overhead))),
        ("Where the time of a step goes", _profiles(records)),
        ("From the command to the window", _starts(records)),
        ("Scale", _scales(records)),
    )
    return "\n".join(f"### {title}\n\n{chr(10).join(filter(None, text)) or NOTHING}\n" for title, text in sections)


def rewritten(page: str, part: str) -> str:
    """``page`` with ``part`` between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{part}\n{END}{rest.partition(END)[2]}"


def committed_records() -> list[Record]:
    """Measured ones of all cases, on real chips by official plans."""
    folders = sorted((ROOT / "cases").glob("*/records"))
    records = [record for folder in folders for record in load_records(folder).values()]
    return [record for record in records if record.status == "ok" and record.official and not record.emulated]


def _read(folder: Path, schema: type[S]) -> list[S]:
    return [schema.model_validate_json(file.read_bytes()) for file in sorted(folder.glob("*.json"))]


def _limits(found: Iterable[Roofline], records: Iterable[Record]) -> list[str]:
    names = {record.id: _name(record) for record in records}
    head = ("run", "token/p/s", "limit", "chips timed", "share", *(f"{part}, ms" for part in get_args(Part)))
    rows = [
        (
            names.get(one.record or "", f"{one.case} {one.topology} {one.run}"),
            "/" if one.share is None else f"{one.share * one.tokens_per_second_per_chip:,.0f}",
            f"{one.tokens_per_second_per_chip:,.0f}",
            "{} of {}".format(*one.chips),
            "/" if one.share is None else f"{one.share:.1%}",
            *(f"{one.seconds[part] * 1e3:.1f}" for part in get_args(Part)),
        )
        for one in found
    ]
    return [markdown(head, rows)] if rows else []


def _overheads(found: Iterable[Overhead]) -> list[str]:
    head = ("run", "engine", "added", "at most", "allowed", "waits in a step")
    rows = [
        (
            f"{one.case} {one.topology} {one.run}",
            one.engine,
            f"{one.added:+.2%}",
            f"{one.bound:+.2%}",
            f"{one.limit:.1%}",
            ", ".join(f"{times} x {place}" for place, times in one.waits.items()) or "none",
        )
        for one in found
    ]
    return [markdown(head, rows)] if rows else []


def _profiles(records: Iterable[Record]) -> list[str]:
    head = ("run", "step, ms", *get_args(Share))
    rows = [
        (_name(r), f"{r.profile.step_time_s * 1e3:.0f}", *(f"{p / r.profile.step_time_s:.1%}" for p in _shares(r)))
        for r in records
        if r.profile is not None
    ]
    return [markdown(head, rows)] if rows else []


def _shares(record: Record) -> list[float]:
    assert record.profile is not None
    return [record.profile.seconds.get(share, 0.0) for share in get_args(Share)]


def _starts(records: Iterable[Record]) -> list[str]:
    head = ("run", "in all, s", *get_args(StartPhase))
    rows = [
        (
            _name(r),
            f"{sum(r.startup_seconds.values()):.1f}",
            *(_seconds(r.startup_seconds.get(p)) for p in get_args(StartPhase)),
        )
        for r in records
        if r.startup_seconds
    ]
    return [markdown(head, rows)] if rows else []


def _seconds(value: float | None) -> str:
    return "/" if value is None else f"{value:.1f}"


def _scales(records: Iterable[Record]) -> list[str]:
    """Data parallel runs of the same work on several numbers of a node's chips: the fastest of each.

    How a run makes its sequences fit is its own affair: more chips leave room for other splits, and less to be
    computed again. One chip moves nothing, and stands beside several whichever way they move theirs.
    """
    kinds: dict[tuple[str, ...], dict[int, tuple[float, str]]] = {}
    for record in records:
        if record.plan is None or record.throughput is None or record.parallel.dp != record.topology.world_size:
            continue
        if record.topology.nodes == 1:
            hp, rate = record.plan.hyper_parameters, record.throughput.tokens_per_second_per_chip
            again = "" if hp.activation_checkpointing == "none" else f", {hp.activation_checkpointing}"
            split = f"{hp.local_batch_size} x {hp.gradient_accumulation_steps}{again}"
            chips = record.topology.world_size
            for collectives in get_args(Collectives) if chips == 1 else (hp.collectives,):
                found = kinds.setdefault(_kind(record, hp, collectives), {})
                found[chips] = max((rate, split), found.get(chips, (0.0, "")))
    shared = ("run", "engine", "precision", "state", "attention", "collectives", "sequences")
    head = (*shared, "token/p/s by chips (LBS x GAS, checkpointing)", "efficiency")
    rows = [(*kind, *_scale(found)) for kind, found in sorted(kinds.items()) if len(found) > 1]
    return [markdown(head, rows), SPLITS] if rows else []


def _scale(found: Mapping[int, tuple[float, str]]) -> tuple[str, str]:
    """Each number of chips with its rate and split, and how each compares with the next smaller one."""
    rates = sorted(found.items())
    told = [f"{chips}: {rate:,.0f} ({split})" for chips, (rate, split) in rates]
    pairs = itertools.pairwise(rates)
    shares = [f"{more} / {fewer}: {rate / base:.1%}" for (fewer, (base, _)), (more, (rate, _)) in pairs]
    return ", ".join(told), ", ".join(shares)


def _kind(record: Record, hp: HyperParameters, collectives: str) -> tuple[str, ...]:
    """What runs must share for their rates to be compared: work a chip and step, and what is done for it."""
    sequences = f"{hp.local_batch_size * hp.gradient_accumulation_steps} of {hp.sequence_length}"
    done = (hp.precision, hp.optimizer_state, hp.attention, collectives)
    return f"{record.case} {record.chip}{_layers(record)}", record.engine, *done, sequences


def _name(record: Record) -> str:
    return f"{record.case} {record.topology} {record.run}{_layers(record)}"


def _layers(record: Record) -> str:
    """Told where they are not all."""
    return f", {record.plan.model.num_layers} layers" if record.plan is not None and record.scaled_down else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the part."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--write", action="store_true")
    given = options.parse_args(arguments)
    part = measured(RESULTS, committed_records())
    if given.write:
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), part), encoding="utf-8")
    else:
        print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
