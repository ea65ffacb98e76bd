"""What every contender of a comparison has to do, and what each of them hands back. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from core.errors import UsageError
from schemas.base import Schema
from schemas.model import DecoderSpec
from schemas.plan import Plan


class Work(Schema):
    """One optimizer step, as often as the window takes; derived from the plan of our own run."""

    case: str
    gpus: PositiveInt
    device: Literal["cuda", "cpu"]
    model: DecoderSpec
    sequence_length: PositiveInt
    sequences: PositiveInt
    """Per GPU and optimizer step; each contender splits them into micro-batches as it likes."""
    precision: Literal["bf16", "fp32"]
    optimizer_state: Literal["bf16", "fp32"]
    """Of main weights and moments. Ours rounds bf16 ones stochastically, which costs it time; others do not."""
    learning_rate: PositiveFloat
    adam_beta1: NonNegativeFloat
    adam_beta2: NonNegativeFloat
    adam_eps: PositiveFloat
    weight_decay: NonNegativeFloat
    clip_grad_norm: PositiveFloat
    warmup_steps: PositiveInt
    steps: PositiveInt
    min_window_s: NonNegativeFloat
    seed: NonNegativeInt

    @property
    def tokens_per_step(self) -> int:
        """Per GPU."""
        return self.sequences * self.sequence_length

    @classmethod
    def of(cls, plan: Plan) -> Work:
        """The work of ``plan``; UsageError where others could not do the same."""
        hp = plan.hyper_parameters
        lacking = [] if hp.precision in ("bf16", "fp32") else [f"precision {hp.precision}"]
        lacking += [] if plan.parallel.dp == plan.topology.world_size else [f"parallel {plan.parallel}"]
        lacking += [] if plan.lora is None and plan.vision is None else ["LoRA or images"]
        lacking += [] if hp.schedule == "constant" and hp.clip_grad_norm > 0 else ["schedule or missing clip"]
        if lacking:
            raise UsageError(
                f"run {plan.run} of {plan.case} cannot be compared: {', '.join(lacking)}",
                "choose a data parallel pretraining run in bf16 or fp32 with --config and --run",
            )
        return cls(
            case=plan.case,
            gpus=plan.topology.world_size,
            device="cpu" if plan.chip.reference else "cuda",
            model=plan.model,
            sequence_length=hp.sequence_length,
            sequences=hp.local_batch_size * hp.gradient_accumulation_steps,
            precision="fp32" if hp.precision == "fp32" else "bf16",
            optimizer_state="fp32" if hp.optimizer_state == "fp32" else "bf16",
            warmup_steps=plan.measure.warmup_steps,
            steps=plan.measure.steps,
            min_window_s=0.0 if plan.chip.reference else plan.measure.min_window_s,
            **{name: getattr(hp, name) for name in _SAME},
        )


_SAME = ("learning_rate", "adam_beta1", "adam_beta2", "adam_eps", "weight_decay", "clip_grad_norm", "seed")


class Result(Schema):
    """One measured window of one contender."""

    status: Literal["ok", "oom", "failed", "not run"]
    reason: str | None = None
    """Of every status but ok."""
    micro_batch: PositiveInt
    """Sequences that go through the model at once: LBS."""
    tokens_per_second_per_gpu: PositiveFloat | None = None
    steps: PositiveInt | None = None
    window_s: PositiveFloat | None = None
    peak_memory_gib: NonNegativeFloat | None = None
    """Reserved by torch's allocator, of rank 0."""
    first_loss: float | None = None
    last_loss: float | None = None
    """Of the window, on random tokens: near the logarithm of the vocabulary, if the work was really done."""
    versions: dict[str, str] = {}


class Measured(Schema):
    """A contender and its results, one each time it came round."""

    name: str
    what: str
    command: str = ""
    """Its last one, without the folders."""
    results: tuple[Result, ...] = ()

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens per second and GPU of every window that was measured."""
        return tuple(r.tokens_per_second_per_gpu for r in self.results if r.tokens_per_second_per_gpu is not None)


class Comparison(Schema):
    """All contenders on the same GPUs in one session, one after the other and over again."""

    schema_version: Literal[1] = 1
    command: str
    started_unix_s: NonNegativeFloat
    topology: str
    work: Work
    contenders: tuple[Measured, ...] = Field(min_length=1)
