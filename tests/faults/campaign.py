"""Plays every fault many times and prints a table: ``python -m tests.faults.campaign [--times 20] [NAME ...]``."""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.catalog import FAULTS
from tests.faults.faults import Fault, Scene, play


def main() -> int:
    """0 when every repeat of every fault was right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these faults")
    parser.add_argument("--times", type=int, default=20, metavar="N")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs beside each other")
    given = parser.parse_args()
    rows = [(f, engine) for f in FAULTS for engine in f.engines if not given.names or f.name in given.names]
    print("| fault | engine | right | seconds (median, max) |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return max([_row(fault, engine, given, Path(folder)) for fault, engine in rows], default=0)


def _row(fault: Fault, engine: str, given: argparse.Namespace, folder: Path) -> int:
    if why := fault.unless():
        print(f"| {fault.name} | {engine} | not played: {why} | |", flush=True)
        return 0
    scenes = [Scene(folder / fault.name / engine / str(n), folder / "cache") for n in range(given.times)]
    with ThreadPoolExecutor(given.jobs) as pool:
        results = list(pool.map(lambda scene: _play(fault, engine, scene), scenes))
    right = sum(not wrong for wrong, _ in results)
    times_s = [seconds for _, seconds in results]
    spent = f"{statistics.median(times_s):.1f}, {max(times_s):.1f}"
    print(f"| {fault.name} | {engine} | {right}/{given.times} | {spent} |", flush=True)
    for wrong, _ in results:
        if wrong:
            print(f"  {fault.name} ({engine}): {'; '.join(wrong)}", flush=True)
    return int(right < given.times)


def _play(fault: Fault, engine: str, scene: Scene) -> tuple[list[str], float]:
    """One repeat; one that cannot even be judged is wrong, and does not end the campaign."""
    try:
        return play(fault, engine, scene)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"], math.nan


if __name__ == "__main__":
    raise SystemExit(main())
