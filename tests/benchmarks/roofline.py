"""The limit of a row: its step composed from what this chip does with each part of it alone, collectives hidden.

``python -m tests.benchmarks.roofline RUN_DIR`` right after the run, on the same chip (about half a minute on an
H200), gives the run's share of its limit; with ``CASE --config H200x1x4 --run tuned`` instead, the limit alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import PositiveFloat

from core import plan as planning
from core import selection
from core.errors import AccelMarkError
from core.plugins import load_alone
from core.record import RECORD_FILE, read_plan, read_record
from core.worker import PLAN_FILE
from schemas.base import Schema
from schemas.plan import Plan
from schemas.record import Record
from tests.benchmarks.step_parts import AttentionShape, Product, StepParts, step_parts
from tests.benchmarks.tables import markdown

if TYPE_CHECKING:
    from tests.benchmarks.chip_speed import ChipSpeed

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
    """What one step would take at best, and what the run took."""

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
    record: str | None = None
    """The run whose share this is."""
    share: PositiveFloat | None = None
    """What the run reached of the limit."""


class Speed(Protocol):
    """What is asked of a chip; see ``chip_speed``."""

    def product_s(self, product: Product) -> tuple[float, ...]: ...
    def attention_s(self, shape: AttentionShape) -> tuple[float, str]: ...
    def bytes_per_s(self) -> float: ...


def compose(plan: Plan, parts: StepParts, chip: Speed, device: str, record: Record | None = None) -> Roofline:
    """Time each part of a step once, and add up as many as the step has."""
    timed = {product: chip.product_s(product) for product in (*parts.products, parts.head)}
    attended = {shape: chip.attention_s(shape) for shape in parts.attentions}
    rate = chip.bytes_per_s()
    seconds: Mapping[Part, float] = {
        "matrix_products": sum(sum(timed[product]) * product.times for product in parts.products),
        "attention": sum(attended[shape][0] * shape.times for shape in parts.attentions),
        "loss": sum(timed[parts.head]) * parts.head.times + parts.loss_bytes / rate,
        "memory_bound": parts.layer_bytes / rate,
        "optimizer": parts.optimizer_bytes / rate,
    }
    step_s = sum(seconds.values())
    limit = parts.tokens / step_s
    reached = None if record is None or record.throughput is None else record.throughput.tokens_per_second_per_chip
    products = (_measured(product, times) for product, times in timed.items())
    attentions = (_measured_attention(shape, *found) for shape, found in attended.items())
    return Roofline(
        case=plan.case,
        topology=plan.topology.render(),
        run=plan.run,
        device=device,
        measured=(*products, *attentions),
        gigabytes_per_s=rate / 1e9,
        seconds=dict(seconds),
        step_s=step_s,
        tokens_per_second_per_chip=limit,
        record=None if record is None else record.id,
        share=None if reached is None else reached / limit,
    )


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
        *([] if found.share is None else [f"Run `{found.record}` reaches {found.share:.1%} of it."]),
        markdown(("part", "ms", "share"), parts),
        markdown(("measured alone", "shape", "TFLOP/s: forward, gradients of input and weight"), rates),
        f"A copy moves {found.gigabytes_per_s:,.0f} GB/s.",
    ]
    return "\n\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and keep it as JSON; 0 unless the plan or the device cannot be."""
    given = _options().parse_args(arguments)
    try:
        plan, record = _planned(given)
        parts = step_parts(plan, None if record is None else record.throughput)
        chip, device = _chip(plan, given.seconds)
        found = compose(plan, parts, chip, device, record)
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


def _chip(plan: Plan, seconds: float) -> tuple[ChipSpeed, str]:
    """The plan's device, in the plan's math mode, by its vendor's plugin."""
    import torch

    from core import defaults
    from tests.benchmarks.chip_speed import ChipSpeed

    dtypes = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}
    vendor = load_alone(plan.vendor, plan.vendor_distribution, defaults)
    device = vendor.init_device(plan, 0)
    dtype = dtypes.get(plan.compute_precision, torch.float32)
    return ChipSpeed(torch.device(device.torch_device), dtype, seconds), device.name


if __name__ == "__main__":
    sys.exit(main())
