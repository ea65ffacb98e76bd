"""One rank that trains several variants of one run: ``python job.py FOLDER STORE NAME...``

Each goes the whole path of a worker, into a run folder of its own: ``FOLDER/NAME``. A fault is planted where it
would happen: in the engine, the attention, the data or the matrix products.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import core.loop
from core import cases, plan, plugins
from core.data.reader import TokenReader
from core.data.source import MicroBatch
from core.engines.torch_engine import TorchEngine
from core.layout import Rank
from core.models import attention
from core.schedule import learning_rate
from core.worker import PLAN_FILE, work
from tests.core.align.variants import VARIANTS, Variant

Planted = contextlib.AbstractContextManager[object]


def doubled_learning_rate() -> Planted:
    return patch.object(core.loop, "learning_rate", lambda *given: 2 * learning_rate(*given))


def no_causal_mask() -> Planted:
    masked = attention._causal_bias

    def open_to_the_future(*arguments: Any) -> Tensor:
        bias = masked(*arguments)
        return bias.masked_fill(bias.isneginf(), 0.0)

    return patch.object(attention, "_causal_bias", open_to_the_future)


def labels_one_further() -> Planted:
    batch = TokenReader.batch

    def shifted(self: TokenReader, *arguments: int) -> MicroBatch:
        found = batch(self, *arguments)
        labels = found.arrays["labels"]
        labels[:, :-1] = labels[:, 1:].copy()
        return found

    return patch.object(TokenReader, "batch", shifted)


def no_gradient_reduction() -> Planted:
    return patch.object(TorchEngine, "_replicate", lambda _, model: model)


class Tf32Products(TorchDispatchMode):
    """Operands of every matrix product, forward and backward, are rounded to TF32's 10 bits of mantissa."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            args = tuple(to_tf32(value) if isinstance(value, Tensor) else value for value in args)
        return func(*args, **(kwargs or {}))


def to_tf32(value: Tensor) -> Tensor:
    """fp32 rounded to the nearest number of 10 bits of mantissa, a tie to the even one."""
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def tf32_switched_on() -> Planted:
    """On a GPU, the real thing."""
    switch = torch.set_float32_matmul_precision
    return patch.object(torch, "set_float32_matmul_precision", lambda _: switch("high"))


FAULTS: dict[str | None, Callable[[], Planted]] = {
    None: contextlib.nullcontext,
    "doubled learning rate": doubled_learning_rate,
    "no causal mask": no_causal_mask,
    "labels one further": labels_one_further,
    "no gradient reduction": no_gradient_reduction,
    "TF32 under fp32": Tf32Products,
    "TF32 switched on": tf32_switched_on,
}


def plan_of(variant: Variant, world: int) -> plan.Plan:
    """The first run of the variant's config, changed."""
    loaded = cases.resolve(variant.case)
    config = loaded.config(variant.config)
    request = plan.Request(
        loaded,
        config,
        config.value.runs[0],
        plugins.select(config.value.vendor),
        variant.engine,
        variant.sets,
        (1, world),
    )
    return plan.build(request)


def main(folder: Path, store: str, names: list[str]) -> int:
    torch.set_num_threads(1)
    rank = Rank.from_environment()
    meeting = dist.FileStore(store, rank.world_size)
    for name in names:
        run_dir = folder / name
        run_dir.mkdir(exist_ok=True)
        planned = plan_of(VARIANTS[name], rank.world_size)
        if rank.rank == 0:
            (run_dir / PLAN_FILE).write_text(planned.model_dump_json(), encoding="utf-8")
        with FAULTS[VARIANTS[name].fault]():
            code = work(planned, run_dir, rank, partial(dist.PrefixStore, name, meeting))
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
