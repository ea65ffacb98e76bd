"""What one optimizer step of a plan is made of, on one chip: products, attention, bytes. Imports no torch.

Only what no implementation can do without: nothing is computed twice, what can be fused is, padding costs nothing,
and collectives are hidden. A limit made of these is below what runs, and ``activation_checkpointing`` or
``compile`` do not move it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from core.errors import UsageError
from schemas.model import VisionSpec
from schemas.plan import Plan
from schemas.record import Throughput
from tests.benchmarks import step_bytes
from tests.benchmarks.step_bytes import ELEMENT_BYTES, trains_decoder

Gradient = Literal["input", "weight"]

TILE = 128
"""What kernels cut sequences into: sizes that vary are timed at the next multiple."""


@dataclass(frozen=True)
class Product:
    """``[tokens, inputs] x [inputs, outputs]`` with its gradients, ``times`` a step."""

    name: str
    tokens: int
    inputs: int
    outputs: int
    times: float
    gradients: tuple[Gradient, ...] = ("input", "weight")
    """Those that there are: a frozen weight has none, nor has an input that nothing before it is trained for."""
    fp8: bool = False
    """Whether it multiplies in 8 bits, and its gradients do."""

    @property
    def flops(self) -> float:
        """Of one of its one to three products."""
        return 2.0 * self.tokens * self.inputs * self.outputs


@dataclass(frozen=True)
class AttentionShape:
    """Causal attention, forward and backward, ``times`` a step; a tower's is full, and only forward."""

    name: str
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_size: int
    times: float
    tower: bool = False

    @property
    def flops(self) -> float:
        """2 products of all scores; or 2 and 5 of half of them, of which one computes the scores again."""
        return (4.0 if self.tower else 7.0) * self.batch * self.heads * self.length**2 * self.head_size


@dataclass(frozen=True)
class StepParts:
    """Everything a chip does in one optimizer step; bytes are those that are moved to or from its memory."""

    products: tuple[Product, ...]
    head: Product
    attentions: tuple[AttentionShape, ...]
    layer_bytes: float
    """Norms, residuals, rotations, gates, casts to 8 bits: forward and backward."""
    loss_bytes: float
    """Logits are read once, and their gradient is written in their place."""
    optimizer_bytes: float
    tokens: float
    """Of the step, by chip; padding is none."""


@dataclass(frozen=True)
class _Work:
    """What a replica reads in a step, and the size that stands for all micro-batches where theirs vary.

    A part is timed at that size, and counts as often as the step's FLOPs are those of the size.
    """

    tokens: float
    """Of the whole step; so are ``images``."""
    attended_length: float
    """Of the sequence that a token is in, mean over the tokens."""
    images: float
    micro_tokens: int
    rows: int
    length: int
    micro_images: int

    @property
    def micro_batches(self) -> float:
        return self.tokens / self.micro_tokens

    @property
    def attentions(self) -> float:
        """Scores are as many as the squared lengths add up to."""
        return self.tokens * self.attended_length / (self.rows * self.length**2)


def step_parts(plan: Plan, measured: Throughput | None = None) -> StepParts:
    """The parts of ``plan``; UsageError where lengths vary and none were ``measured``."""
    model, tp, work = plan.model, plan.parallel.tp, _work(plan, measured)
    layers = -(-model.num_layers // plan.parallel.pp)
    heads = (model.num_heads // tp, model.num_kv_heads // tp)
    attention = AttentionShape(
        "attention", work.rows, *heads, work.length, model.head_size, layers * work.attentions
    )
    gradients = _gradients(plan)
    head = Product(
        "output head", work.micro_tokens, model.hidden_size, model.vocab_size // tp, work.micro_batches, gradients
    )
    products, attentions = _block_products(plan, work, layers), (attention,)
    if plan.vision is not None:
        products += _image_products(plan.vision, model.hidden_size, work)
        attentions += (_tower_attention(plan.vision, work),)
    return StepParts(
        products=products,
        head=head,
        attentions=attentions,
        layer_bytes=step_bytes.layer_bytes(plan, work.tokens, work.images),
        loss_bytes=ELEMENT_BYTES[plan.compute_precision] * work.tokens * 2 * model.vocab_size / tp,
        optimizer_bytes=step_bytes.optimizer_bytes(plan),
        tokens=work.tokens / tp / plan.parallel.pp,
    )


def _work(plan: Plan, measured: Throughput | None) -> _Work:
    """By the plan where its sequences are full ones, else as they were measured."""
    hp, parallel = plan.hyper_parameters, plan.parallel
    if plan.vision is None and hp.packing == "concat":
        tokens = hp.local_batch_size * hp.sequence_length
        length = hp.sequence_length
        step = hp.gradient_accumulation_steps * tokens
        return _Work(step, length, 0.0, tokens, hp.local_batch_size, length, 0)
    if measured is None or measured.attended_length is None or measured.step_time_mean_s is None:
        raise UsageError(
            f"run {plan.run} of {plan.case}: its sequences vary in length, and none were measured",
            "give the folder of a run that finished in the place of the case",
        )
    by_chip = measured.tokens_per_second_per_chip * measured.step_time_mean_s
    step = by_chip * parallel.tp * parallel.pp
    images = step * measured.images_per_token
    tokens = _rounded(step / hp.gradient_accumulation_steps)
    length = _rounded(measured.attended_length)
    rows = max(1, round(tokens / length))
    micro_images = max(1, math.ceil(images / hp.gradient_accumulation_steps))
    return _Work(step, measured.attended_length, images, tokens, rows, length, micro_images)


def _rounded(size: float) -> int:
    """Up: smaller sizes run at lower rates, and a limit has to be one."""
    return math.ceil(size / TILE) * TILE


def _gradients(plan: Plan) -> tuple[Gradient, ...]:
    return ("input", "weight") if trains_decoder(plan) else ("input",)


def _block_products(plan: Plan, work: _Work, layers: int) -> tuple[Product, ...]:
    model, tp = plan.model, plan.parallel.tp
    hidden, inner, kv = model.hidden_size, model.intermediate_size, model.num_kv_heads * model.head_size
    shapes = (
        ("queries, keys, values", hidden, (hidden + 2 * kv) // tp),
        ("attention output", hidden // tp, hidden),
        ("gate and up", hidden, 2 * inner // tp),
        ("down", inner // tp, hidden),
    )
    times, gradients, fp8 = layers * work.micro_batches, _gradients(plan), plan.compute_precision == "fp8"
    return tuple(Product(name, work.micro_tokens, i, o, times, gradients, fp8) for name, i, o in shapes)


def _image_products(vision: VisionSpec, hidden: int, work: _Work) -> tuple[Product, ...]:
    """Of the frozen tower, forward only, and of the projector, which no gradient leaves."""
    size, inner, patches = vision.hidden_size, vision.intermediate_size, vision.image_tokens
    times, count = work.images / work.micro_images, work.micro_images
    in_tower = (
        ("queries, keys, values", size, 3 * size),
        ("attention output", size, size),
        ("up", size, inner),
        ("down", inner, size),
    )
    layers = vision.used_layers * times
    return (
        Product("tower: patches", count * patches, 3 * vision.patch_size**2, size, times, ()),
        *(Product(f"tower: {name}", count * (patches + 1), i, o, layers, ()) for name, i, o in in_tower),
        Product("projector: first", count * patches, size, hidden, times, ("weight",)),
        Product("projector: second", count * patches, hidden, hidden, times),
    )


def _tower_attention(vision: VisionSpec, work: _Work) -> AttentionShape:
    """Patches and the class token, with one another."""
    count, heads = work.micro_images, vision.num_heads
    times = vision.used_layers * work.images / count
    size = vision.hidden_size // heads
    return AttentionShape(
        "tower: attention", count, heads, heads, vision.image_tokens + 1, size, times, tower=True
    )
