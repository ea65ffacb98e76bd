"""What one optimizer step of a plan is made of, on one chip: products, attention, bytes. Imports no torch.

Only what no implementation can do without: nothing is computed twice, what can be fused is, and collectives are
hidden. A limit made of these is below what runs, and ``activation_checkpointing`` or ``compile`` do not move it.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import UsageError
from core.layout import count_parameters
from schemas.plan import Plan

ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
STATE_BYTES = {"fp32": 28, "bf16_stochastic": 14, "8bit": 10}
"""An update of one parameter: weight, gradient and two moments are read, all but the gradient are written (fp32:
4 x 4 + 3 x 4; bf16: 4 x 2 + 3 x 2; 8 bit: weight and gradient of 2 bytes, moments of 1)."""
ROUNDING_BYTES = 6
"""An fp32 main weight is read once more to be written in 16 bits."""
GRADIENT_BYTES = {"fp32": 4, "bf16_stochastic": 2, "8bit": 2}
"""Read once more for the global norm that they are clipped by."""


@dataclass(frozen=True)
class Product:
    """``[tokens, inputs] x [inputs, outputs]`` with its two gradients, ``times`` a step."""

    name: str
    tokens: int
    inputs: int
    outputs: int
    times: int
    trained: bool = True
    """Whether its weight has a gradient."""

    @property
    def flops(self) -> float:
        """Of one of its two or three products."""
        return 2.0 * self.tokens * self.inputs * self.outputs


@dataclass(frozen=True)
class AttentionShape:
    """Causal attention, forward and backward, ``times`` a step."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_size: int
    times: int

    @property
    def flops(self) -> float:
        """Forward and backward of half of the scores: 2 and 5 products, of which one computes the scores again."""
        return 7.0 * self.batch * self.heads * self.length**2 * self.head_size


@dataclass(frozen=True)
class StepParts:
    """Everything a chip does in one optimizer step; bytes are those that are moved to or from its memory."""

    products: tuple[Product, ...]
    head: Product
    attention: AttentionShape
    layer_bytes: float
    """Norms, residuals, rotations, gates: forward and backward."""
    loss_bytes: float
    """Logits are read once, and their gradient is written in their place."""
    optimizer_bytes: float
    tokens: float
    """Of the step, by chip."""


def step_parts(plan: Plan) -> StepParts:
    """The parts of ``plan``; UsageError for a model or precision that they would not describe."""
    hp, model, parallel = plan.hyper_parameters, plan.model, plan.parallel
    if plan.vision is not None or plan.compute_precision not in ELEMENT_BYTES:
        raise UsageError(
            f"run {plan.run} of {plan.case}: the parts of images or of {plan.compute_precision} are not known",
            "take a run of text in fp32, tf32, bf16 or fp16",
        )
    tokens, micro_steps, tp = (
        hp.local_batch_size * hp.sequence_length,
        hp.gradient_accumulation_steps,
        parallel.tp,
    )
    layers = -(-model.num_layers // parallel.pp)
    hidden, inner, trained = model.hidden_size, model.intermediate_size, plan.lora is None
    kv = model.num_kv_heads * model.head_size
    times = layers * micro_steps
    shapes = (
        ("queries, keys, values", hidden, (hidden + 2 * kv) // tp),
        ("attention output", hidden // tp, hidden),
        ("gate and up", hidden, 2 * inner // tp),
        ("down", inner // tp, hidden),
    )
    products = tuple(Product(name, tokens, i, o, times, trained) for name, i, o in shapes)
    head = Product("output head", tokens, hidden, model.vocab_size // tp, micro_steps, trained)
    element = ELEMENT_BYTES[plan.compute_precision]
    rotated = 2 * (hidden + kv) if model.position == "rope" else 0
    per_token = 16 * hidden + (2 * rotated + 8 * inner) / tp
    return StepParts(
        products=products,
        head=head,
        attention=AttentionShape(
            hp.local_batch_size,
            model.num_heads // tp,
            model.num_kv_heads // tp,
            hp.sequence_length,
            model.head_size,
            times,
        ),
        layer_bytes=element * times * tokens * per_token + _accumulation_bytes(plan, element),
        loss_bytes=element * micro_steps * tokens * 2 * model.vocab_size / tp,
        optimizer_bytes=_optimizer_bytes(plan),
        tokens=plan.tokens_per_step / plan.topology.world_size,
    )


def _accumulation_bytes(plan: Plan, element: int) -> float:
    """From the second micro-batch on, a gradient is read to be added to."""
    if plan.lora is not None:
        return 0.0
    held = count_parameters(plan.model) / plan.parallel.tp / plan.parallel.pp
    return element * held * (plan.hyper_parameters.gradient_accumulation_steps - 1)


def _optimizer_bytes(plan: Plan) -> float:
    hp, parallel = plan.hyper_parameters, plan.parallel
    if plan.lora is not None:
        return 0.0
    shards = parallel.dp if hp.zero_stage > 0 else 1
    each = STATE_BYTES[hp.optimizer_state] + GRADIENT_BYTES[hp.optimizer_state]
    if hp.optimizer_state == "fp32" and ELEMENT_BYTES[plan.compute_precision] == 2:
        each += ROUNDING_BYTES
    return each * count_parameters(plan.model) / parallel.tp / parallel.pp / shards
