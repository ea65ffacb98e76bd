"""What the framework adds to a step: our loop against a bare one around the same model and optimizer.

``python -m tests.benchmarks.overhead llama2_7b`` sets a run up as ``core.run`` does (on a CPU; ``--config H200x1x1
--run tuned`` on a GPU, where it takes about two minutes; under torchrun on several) and lets two loops take
turns in one process: ours, with data reading, events and telemetry, and one of a dozen lines, on batches that lie
on the device. It also counts where the host waits for the device within our window.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from core import plan as planning
from core import selection
from core.errors import AccelMarkError, DeviceError
from core.events import EventLog
from core.layout import Rank
from core.training import Training
from schemas.base import Schema
from schemas.plan import Plan

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from core.engines.base import Engine
    from core.loop import Loop
    from core.plugins import Vendor
    from schemas.chip import Device

CONFIDENCE = 0.95
LIMITS = {"cpu": 0.03, "cuda": 0.005}
"""Of the added step time, as a share of the bare step."""


class Overhead(Schema):
    """What was found; step times in seconds (on a CPU of the processors), one of each alternation."""

    case: str
    topology: str
    run: str
    engine: str
    steps: PositiveInt
    ours_s: tuple[float, ...]
    bare_s: tuple[float, ...]
    added: float
    """Median over the alternations of ours / bare - 1."""
    bound: float
    """The share that, with a confidence of 95%, the median added share is not above."""
    limit: NonNegativeFloat
    waits: dict[str, NonNegativeInt]
    """Place in the code -> how often a step waited there for the device, on the way to a value on the host."""


def added_share(ours_s: list[float], bare_s: list[float]) -> tuple[float, float]:
    """The median of ours / bare - 1, and its upper bound.

    The bound is an order statistic: the k-th smallest share is above the median unless k or more shares are below
    it, which has a binomial probability. So it needs no distribution of the noise; of five it is the largest.
    """
    shares = sorted(ours / bare - 1 for ours, bare in zip(ours_s, bare_s, strict=True))
    n, at_most = len(shares), 0.0
    for below in range(n):
        at_most += comb(n, below) / 2**n
        if at_most >= CONFIDENCE:
            return statistics.median(shares), shares[below]
    raise ValueError(f"{n} alternations give no bound of {CONFIDENCE:.0%}; take 5 or more")


@dataclass(frozen=True)
class Turns:
    """How often, how long, and who is told."""

    alternations: int
    steps: int
    tell: Callable[[Overhead], None]


class OverheadTraining(Training):
    """A run whose measured part is the comparison."""

    def __init__(self, plan: Plan, rank: Rank, log: EventLog, run_dir: Path, turns: Turns) -> None:
        super().__init__(plan, rank, log, run_dir)
        self._turns = turns

    def _measure(self, loop: Loop, engine: Engine, vendor: Vendor, device: Device) -> None:
        from core.telemetry import TelemetrySampler
        from tests.benchmarks.bare_loop import BareLoop
        from tests.benchmarks.host_waits import counted_waits

        loop.warm_up()
        bare = BareLoop(self._plan, engine, loop)
        bare.measure(self._plan.measure.warmup_steps)

        def ours() -> float:
            sampler = TelemetrySampler(partial(vendor.collect_telemetry, device), self._log)
            try:
                return _seconds(loop.measure, self._turns.steps, engine.device.type)
            finally:
                sampler.stop()

        def plain() -> float:
            return _seconds(bare.measure, self._turns.steps, engine.device.type)

        ours_s, bare_s = _alternate(ours, plain, self._turns.alternations)
        waits = counted_waits(engine.device, partial(loop.measure, self._turns.steps))
        added, bound = added_share(ours_s, bare_s)
        found = Overhead(
            case=self._plan.case,
            topology=self._plan.topology.render(),
            run=self._plan.run,
            engine=self._plan.engine,
            steps=self._turns.steps,
            ours_s=tuple(ours_s),
            bare_s=tuple(bare_s),
            added=added,
            bound=bound,
            limit=LIMITS["cpu" if engine.device.type == "cpu" else "cuda"],
            waits={place: -(-times // self._turns.steps) for place, times in waits.items()},
        )
        if self._rank.rank == 0:
            self._turns.tell(found)


def _seconds(window: Callable[[int], float], steps: int, device_type: str) -> float:
    """Of one step: on a CPU, where the host does all the work, the processors' time, whatever else they do."""
    if device_type != "cpu":
        return window(steps) / steps
    begin = time.process_time()
    window(steps)
    return (time.process_time() - begin) / steps


def _alternate(
    ours: Callable[[], float], bare: Callable[[], float], alternations: int
) -> tuple[list[float], list[float]]:
    """Ours first and the bare one first in turn, so that a chip that warms up favours neither."""
    ours_s, bare_s = [], []
    for turn in range(alternations):
        for of_ours in (True, False) if turn % 2 == 0 else (False, True):
            (ours_s if of_ours else bare_s).append(ours() if of_ours else bare())
    return ours_s, bare_s


def compare(plan: Plan, turns: Turns) -> None:
    """Set the run up in this process, the only rank or one of torchrun's, and let the loops take turns."""
    import torch.distributed as dist

    alone = "RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
    rank = Rank(0, 0, 1) if alone else Rank.from_environment()
    if rank.world_size != plan.topology.world_size:
        raise DeviceError(
            f"the run needs {plan.topology.world_size} ranks, there are {rank.world_size}",
            f"start it with torchrun --nproc-per-node {plan.topology.world_size} -m -- tests.benchmarks.overhead",
        )
    for name, value in plan.launch_env.items():
        os.environ.setdefault(name, value)
    store: Store | None = dist.HashStore() if alone else None
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        log = EventLog(Path(folder), rank.rank)
        OverheadTraining(plan, rank, log, Path(folder), turns).run(store)


def main(arguments: list[str] | None = None) -> int:
    """0 where the bound is within the limit, and on engine torch no step waits for the device."""
    given = _options().parse_args(arguments)
    told: list[Overhead] = []
    try:
        compare(_plan(given), Turns(given.alternations, given.steps, told.append))
    except AccelMarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for found in told:
        given.out.mkdir(parents=True, exist_ok=True)
        file = given.out / f"{found.case}-{found.topology}-{found.run}-{found.engine}.json"
        file.write_text(found.model_dump_json(indent=2) + "\n")
        print(_text(found))
    return 0 if all(_holds(found) for found in told) else 1


def _holds(found: Overhead) -> bool:
    return found.bound <= found.limit and not (found.engine == "torch" and found.waits)


def _text(found: Overhead) -> str:
    ours, bare = statistics.median(found.ours_s), statistics.median(found.bare_s)
    lines = [
        f"{found.case} {found.topology} {found.run} on {found.engine}: a step takes {ours * 1e3:.2f} ms, bare "
        f"{bare * 1e3:.2f} ms; added {found.added:+.2%}, at most {found.bound:+.2%} (limit {found.limit:.1%})",
    ]
    lines += [f"a step waits {times} x at {place}" for place, times in found.waits.items()]
    return "\n".join(lines)


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("case")
    options.add_argument("--config", default="CPUx1x1")
    options.add_argument("--run", default="align")
    options.add_argument("--engine")
    options.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as core.run's"
    )
    options.add_argument("--alternations", type=int, default=12, metavar="N")
    options.add_argument("--steps", type=int, default=3, metavar="N", help="of each window")
    options.add_argument("--out", type=Path, default=Path("runs") / "overhead", metavar="DIR")
    return options


def _plan(given: argparse.Namespace) -> Plan:
    sets: dict[str, Any] = selection.parse_sets(given.sets)
    chosen = selection.Selection(given.case, given.config, given.run, engine=given.engine, sets=sets)
    (request,) = selection.choose(chosen, lambda message: print(message, file=sys.stderr))
    return planning.build(request)


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)  # as our workers leave: native threads have been seen to abort an interpreter that shuts down
