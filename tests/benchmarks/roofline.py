"""The limit of a row: its step composed from what its chips do with each part of it alone, collectives hidden.

``python -m tests.benchmarks.roofline RUN_DIR`` right after the run, on the same chips (about half a minute on
H200s), gives the run's share of its limit; with ``CASE --config H200x1x4 --run tuned`` instead, the limit alone.
Chips are timed all at once, and the slowest, for which the others wait in each step, sets the limit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat

from core import plan as planning
from core import selection
from core.errors import AccelMarkError
from core.record import RECORD_FILE, read_plan, read_record
from core.worker import PLAN_FILE
from schemas.base import Schema
from schemas.plan import Plan
from schemas.record import Record
from schemas.units import Topology
from tests.benchmarks.chip_times import ChipTimes, time_chips
from tests.benchmarks.step_parts import AttentionShape, Product, StepParts, step_parts
from tests.benchmarks.tables import markdown

Part = Literal["matrix_products", "attention", "loss", "memory_bound", "optimizer"]
"""As a profile names them: ``loss`` is the output head with the cross-entropy."""


class Measured(Schema):
    """A part that was timed: seconds of one, and the rate that they are."""

    name: str
    shape: str
    seconds: tuple[PositiveFloat, ...]
    """Of products: forward, the input's gradient, the weight's, as far as there are; of attention all together."""
    tflops: tuple[PositiveFloat, ...]


class Roofline(Schema):
    """What one step would take at best, on the slowest of the chips that were timed, and what the run took."""

    schema_version: Literal[1] = 1
    case: str
    topology: str
    run: str
    device: str
    measured: tuple[Measured, ...]
    gigabytes_per_s: PositiveFloat
    seconds: dict[Part, float]
    """Of one optimizer step; they add up to the limit."""
    step_s: PositiveFloat
    tokens_per_second_per_chip: PositiveFloat
    """The limit."""
    tokens_per_second_by_chip: tuple[PositiveFloat, ...] = ()
    """The limit of each chip, all timed at once, by index; the lowest is the row's. Older results are of one chip,
    and have none."""
    record: str | None = None
    """The run whose share this is."""
    share: PositiveFloat | None = None
    """What the run reached of the limit."""

    @property
    def chips(self) -> tuple[int, int]:
        """How many were timed, and how many the run takes."""
        return len(self.tokens_per_second_by_chip) or 1, Topology.parse(self.topology).world_size


def compose(plan: Plan, parts: StepParts, chips: Sequence[ChipTimes], record: Record | None = None) -> Roofline:
    """Add up each part as often as the step has it; of several chips, the limit is the slowest one's."""
    steps = [_seconds(parts, chip) for chip in chips]
    limits = [parts.tokens / sum(seconds.values()) for seconds in steps]
    limit = min(limits)
    slowest = limits.index(limit)
    chip, seconds = chips[slowest], steps[slowest]
    reached = None if record is None or record.throughput is None else record.throughput.tokens_per_second_per_chip
    products = (_measured(product, times) for product, times in chip.products.items())
    attentions = (_measured_attention(shape, *found) for shape, found in chip.attentions.items())
    return Roofline(
        case=plan.case,
        topology=plan.topology.render(),
        run=plan.run,
        device=chip.device,
        measured=(*products, *attentions),
        gigabytes_per_s=chip.bytes_per_s / 1e9,
        seconds=seconds,
        step_s=sum(seconds.values()),
        tokens_per_second_per_chip=limit,
        tokens_per_second_by_chip=tuple(limits),
        record=None if record is None else record.id,
        share=None if reached is None else reached / limit,
    )


def _seconds(parts: StepParts, chip: ChipTimes) -> dict[Part, float]:
    return {
        "matrix_products": sum(sum(chip.products[product]) * product.times for product in parts.products),
        "attention": sum(chip.attentions[shape][0] * shape.times for shape in parts.attentions),
        "loss": sum(chip.products[parts.head]) * parts.head.times + parts.loss_bytes / chip.bytes_per_s,
        "memory_bound": parts.layer_bytes / chip.bytes_per_s,
        "optimizer": parts.optimizer_bytes / chip.bytes_per_s,
    }


def _measured(product: Product, seconds: tuple[float, ...]) -> Measured:
    return Measured(
        name=f"{product.name} (fp8)" if product.fp8 else product.name,
        shape=f"{product.tokens} x {product.inputs} x {product.outputs}",
        seconds=seconds,
        tflops=tuple(product.flops / each / 1e12 for each in seconds),
    )


def _measured_attention(shape: AttentionShape, seconds: float, kernel: str) -> Measured:
    return Measured(
        name=f"{shape.name} ({kernel})",
        shape=f"{shape.batch} x {shape.heads} x {shape.length} x {shape.head_size}",
        seconds=(seconds,),
        tflops=(shape.flops / seconds / 1e12,),
    )


def table(found: Roofline) -> str:
    """Parts of the step, then the rates that they were composed from."""
    parts = [(part, f"{s * 1e3:.2f}", f"{s / found.step_s:.1%}") for part, s in found.seconds.items()]
    rates = [(m.name, m.shape, ", ".join(f"{rate:.4g}" for rate in m.tflops)) for m in found.measured]
    lines = [
        f"**{found.case} {found.topology} {found.run}** on {found.device}: at best "
        f"{found.step_s * 1e3:.1f} ms a step, {found.tokens_per_second_per_chip:,.0f} token/p/s.",
        *_chips(found),
        *([] if found.share is None else [f"Run `{found.record}` reaches {found.share:.1%} of it."]),
        markdown(("part", "ms", "share"), parts),
        markdown(("measured alone", "shape", "TFLOP/s: forward, gradients of input and weight"), rates),
        f"A copy moves {found.gigabytes_per_s:,.0f} GB/s.",
    ]
    return "\n\n".join(lines)


def _chips(found: Roofline) -> list[str]:
    """What each chip could do, and how many were not asked."""
    timed, taken = found.chips
    rates = found.tokens_per_second_by_chip
    limits = ", ".join(f"{rate:,.0f} on chip {index}" for index, rate in enumerate(rates))
    told = [] if timed == 1 else [f"That is the slowest of {timed} chips, timed at once: {limits}."]
    if timed < taken:
        told.append(f"Timed on {timed} of the run's {taken} chips, as many as are visible; others may be slower.")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and keep it as JSON; 0 unless the plan or the device cannot be."""
    given = _options().parse_args(arguments)
    try:
        plan, record = _planned(given)
        parts = step_parts(plan, None if record is None else record.throughput)
        found = compose(plan, parts, time_chips(plan, parts, given.seconds), record)
    except AccelMarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"{found.case}-{found.topology}-{found.run}.json"
    file.write_text(found.model_dump_json(indent=2) + "\n")
    print(table(found))
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run_dir_or_case", metavar="RUN_DIR|CASE")
    options.add_argument("--config", help="of a case")
    options.add_argument("--run", default="tuned", help="of a case's config")
    options.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of a case")
    options.add_argument("--seconds", type=float, default=1.0, metavar="S", help="about so long for each part")
    options.add_argument("--out", type=Path, default=Path("runs") / "roofline", metavar="DIR")
    return options


def _planned(given: argparse.Namespace) -> tuple[Plan, Record | None]:
    folder = Path(given.run_dir_or_case)
    if (folder / PLAN_FILE).exists():
        return read_plan(folder), read_record(folder / RECORD_FILE)
    sets = selection.parse_sets(given.sets)
    chosen = selection.Selection(given.run_dir_or_case, given.config, given.run, sets=sets)
    (request,) = selection.choose(chosen, lambda message: print(message, file=sys.stderr))
    return planning.build(request), None


if __name__ == "__main__":
    sys.exit(main())
