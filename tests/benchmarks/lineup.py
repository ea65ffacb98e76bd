"""Who competes: the published recipe, what a user would easily write, torchtitan, and ours."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from tests.benchmarks.work import Work

MODULES = "tests.benchmarks.contenders"


@dataclass(frozen=True)
class Contender:
    """One way to do the work."""

    name: str
    what: str
    module: str
    """Of ``contenders``; every one but ``ours`` is started by torchrun."""
    options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    """What it imports, beside torch."""
    largest_micro_batch: int = 1_000

    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"{' and '.join(absent)} not installed" if absent else None

    def micro_batches(self, work: Work) -> tuple[int, ...]:
        """Those that divide the work, the largest first: the next one is taken where memory runs out."""
        largest = min(self.largest_micro_batch, work.sequences)
        return tuple(size for size in range(largest, 0, -1) if work.sequences % size == 0)


def lineup(work: Work) -> tuple[Contender, ...]:
    """Everybody who does ``work``; ours is the last."""
    others = _baichuan2(work) if work.model.position == "alibi" else _llama(work)
    return (*others, Contender("ours", "python -m core.run", "ours"))


def _liger(work: Work) -> tuple[str, ...]:
    """Its kernels are Triton's: on a CPU, which is for trying this out, torch's own loss takes their place."""
    return () if work.device == "cpu" else ("liger_kernel",)


def _llama(work: Work) -> tuple[Contender, ...]:
    return (
        _deepspeed("eager", 3, "HF model, eager attention, checkpointing, DeepSpeed ZeRO-3", largest=1),
        _deepspeed("sdpa", 3, "HF model, SDPA, checkpointing, DeepSpeed ZeRO-3"),
        Contender(
            "easy",
            "HF model, SDPA, Liger's fused loss, torch.compile, no checkpointing; FSDP2 on several GPUs",
            "plain_loop",
            ("--attention", "sdpa", "--fused-loss", "--compile"),
            ("transformers", *_liger(work)),
        ),
        Contender(
            "torchtitan",
            "torchtitan's Trainer: compile by block, no checkpointing; FSDP2 on several GPUs",
            "titan",
            packages=("torchtitan", "torchdata", "datasets", "tyro", "einops", "tensorboard"),
        ),
    )


def _baichuan2(work: Work) -> tuple[Contender, ...]:
    """No library has the model: all train ours, in its plainest form, whose blocks easy alone compiles."""
    easy = Contender(
        "easy",
        "our plain model, SDPA with ALiBi as bias, Liger's fused loss, torch.compile, no checkpointing; "
        "FSDP2 on several GPUs",
        "plain_loop",
        ("--attention", "sdpa", "--fused-loss", "--compile"),
        _liger(work),
        largest_micro_batch=2,
    )
    if work.gpus > 1:
        eager = _deepspeed("eager", 1, "our plain model, eager ALiBi, checkpointing, DeepSpeed ZeRO-1", largest=1)
        sdpa = _deepspeed("sdpa", 1, "our plain model, SDPA with bias, checkpointing, DeepSpeed ZeRO-1", largest=1)
        return eager, sdpa, easy
    return (  # DeepSpeed's copies do not fit one chip
        _plain("eager", "our plain model, eager ALiBi, checkpointing, plain loop (DeepSpeed does not fit)"),
        _plain("sdpa", "our plain model, SDPA with bias, checkpointing, plain loop (DeepSpeed does not fit)"),
        easy,
    )


def _deepspeed(attention: str, stage: int, what: str, largest: int = 1_000) -> Contender:
    options = ("--attention", attention, "--zero-stage", str(stage))
    packages = ("deepspeed", "transformers") if what.startswith("HF") else ("deepspeed",)
    return Contender(f"published_{attention}", what, "deepspeed_recipe", options, packages, largest)


def _plain(attention: str, what: str) -> Contender:
    options = ("--attention", attention, "--checkpointing")
    return Contender(f"published_{attention}", what, "plain_loop", options, largest_micro_batch=1)
