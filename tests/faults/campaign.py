"""Plays every fault many times and prints a table: ``python -m tests.faults.campaign [--times 20] [NAME ...]``.

The table on stdout is the one of docs/faults.md. Right are only repeats that were played and judged; what is wrong
with others is told on stderr, and their folders are kept.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tests.faults.catalog import FAULTS
from tests.faults.faults import ENGINES, Fault, Scene, play

Result = tuple[list[str], float]
"""What is wrong with what a repeat left, and the seconds it took."""


def main(words: Sequence[str] | None = None) -> int:
    """0 when every repeat of every fault was right; one that this machine cannot play is not, unless skipped."""
    given = _arguments(words)
    rows = [
        (fault, engine)
        for fault in FAULTS
        for engine in fault.engines
        if engine in given.engines and (not given.names or fault.name in given.names)
    ]
    print("| fault | engine | right | seconds (median, max) |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        # All are queued at once, so that rows with fewer repeats than there are jobs share the machine.
        begun = [_begin(fault, engine, given, Path(folder), pool) for fault, engine in rows]
        right = [_row(*row, given, repeats) for row, repeats in zip(rows, begun, strict=True)]
    return int(not all(right))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [fault.name for fault in FAULTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these faults: {', '.join(names)}")
    parser.add_argument("--engine", choices=ENGINES, action="append", dest="engines", help="only this engine")
    parser.add_argument("--times", type=int, default=20, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs beside each other")
    parser.add_argument(
        "--out", type=Path, default=Path("faults-gone-wrong"), metavar="DIR", help="for the folders of wrong runs"
    )
    parser.add_argument(
        "--allow-unplayable",
        action="store_true",
        help="faults that this machine cannot play do not count as wrong",
    )
    given = parser.parse_args(words)
    if unknown := set(given.names) - set(names):
        parser.error(f"no fault is called {', '.join(sorted(unknown))}")
    given.engines = given.engines or ENGINES
    return given


def _begin(
    fault: Fault, engine: str, given: argparse.Namespace, folder: Path, pool: ThreadPoolExecutor
) -> list[Future[Result]]:
    """Queue the repeats of one row; none of a fault that cannot be played."""
    if fault.unless():
        return []
    scenes = [Scene(folder / fault.name / engine / str(n), folder / "cache") for n in range(given.times)]
    return [pool.submit(_play, fault, engine, scene, given.out / fault.name / engine) for scene in scenes]


def _row(fault: Fault, engine: str, given: argparse.Namespace, repeats: Sequence[Future[Result]]) -> bool:
    """Print one row when its repeats have ended; whether all were right."""
    if why := fault.unless():
        print(f"| {fault.name} | {engine} | 0/{given.times}, not played: {why} | |", flush=True)
        return bool(given.allow_unplayable)
    results = [repeat.result() for repeat in repeats]
    right = sum(not wrong for wrong, _ in results)
    times_s = [seconds for _, seconds in results if not math.isnan(seconds)] or [math.nan]
    spent = f"{statistics.median(times_s):.1f}, {max(times_s):.1f}"
    print(f"| {fault.name} | {engine} | {right}/{given.times} | {spent} |", flush=True)
    for wrong, _ in results:
        if wrong:
            print(f"  {fault.name} ({engine}): {'; '.join(wrong)}", file=sys.stderr, flush=True)
    return right == given.times


def _play(fault: Fault, engine: str, scene: Scene, keep_in: Path) -> Result:
    """One repeat; one that cannot even be judged is wrong, and does not end the campaign."""
    try:
        wrong, took_s = play(fault, engine, scene)
    except Exception as error:
        wrong, took_s = [f"{type(error).__name__}: {error}"], math.nan
    if wrong:
        return [*wrong, f"see {_keep(scene.folder, keep_in)}"], took_s
    shutil.rmtree(scene.folder)
    return [], took_s


def _keep(scene: Path, into: Path) -> Path:
    """Move the folder of one run there, beside those of earlier campaigns."""
    into.mkdir(parents=True, exist_ok=True)
    kept = Path(tempfile.mkdtemp(dir=into))
    shutil.move(scene, kept)
    return kept / scene.name


if __name__ == "__main__":
    raise SystemExit(main())
