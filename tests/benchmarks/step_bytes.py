"""Bytes that one optimizer step of a plan moves to or from a chip's memory beside products and attention."""

from __future__ import annotations

from core.layout import count_embeddings, count_parameters
from schemas.model import VisionSpec
from schemas.plan import Plan

ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 2}
"""Of what lies between products; in fp8, too, it is of 16 bits, and only what a product takes is of 8."""
STATE_BYTES = {"fp32": 28, "bf16_stochastic": 14, "8bit": 10}
"""An update of one parameter: weight, gradient and two moments are read, all but the gradient are written (fp32:
4 x 4 + 3 x 4; bf16: 4 x 2 + 3 x 2; 8 bit: weight and gradient of 2 bytes, moments of 1)."""
ROUNDING_BYTES = 6
"""An fp32 main weight is read once more to be written in 16 bits."""
GRADIENT_BYTES = {"fp32": 4, "bf16_stochastic": 2, "8bit": 2}
"""Read once more for the global norm that they are clipped by."""
CAST_BYTES = 4
"""Of a number that products in 8 bits take: read in 16 bits, written in 8 for each of two layouts."""


def trains_decoder(plan: Plan) -> bool:
    """Whether its weights have gradients: not under LoRA, and not where images' projector is trained alone."""
    return plan.lora is None and not (plan.vision is not None and plan.hyper_parameters.stage == "pretrain")


def layer_bytes(plan: Plan, tokens: float, images: float) -> float:
    """Of one step of ``tokens`` and ``images``: norms, residuals, rotations, gates, casts, sums of gradients.

    A block's two norms, each with the residual's sum, move 4 x hidden forward and as much backward; the gate 3 x
    inner forward and 5 backward; a rotation what it rotates twice each way.
    """
    model, tp = plan.model, plan.parallel.tp
    element = ELEMENT_BYTES[plan.compute_precision]
    per_token = 16 * model.hidden_size + (4 * _rotated(plan) + 8 * model.intermediate_size) / tp
    if plan.compute_precision == "fp8":
        per_token += _cast_bytes(plan) / element
    layers = -(-model.num_layers // plan.parallel.pp)
    moved = element * layers * tokens * per_token + _accumulation_bytes(plan) + _cast_weight_bytes(plan)
    return moved if plan.vision is None else moved + element * images * _image_elements(plan.vision, plan)


def optimizer_bytes(plan: Plan) -> float:
    """Of the update; where the state is sharded, of this chip's part of it."""
    state = plan.hyper_parameters.optimizer_state
    each = STATE_BYTES[state] + GRADIENT_BYTES[state]
    if state == "fp32" and ELEMENT_BYTES[plan.compute_precision] == 2:
        each += ROUNDING_BYTES
    return each * _trained(plan) / _shards(plan, from_stage=1)


def _rotated(plan: Plan) -> int:
    """Queries and keys of a token."""
    model = plan.model
    return model.hidden_size + model.num_kv_heads * model.head_size if model.position == "rope" else 0


def _cast_bytes(plan: Plan) -> float:
    """Of one token in one block: activations and gradients that products take, in 8 bits.

    The scale is dynamic and of the whole tensor: no number can be written in 8 bits before all of them were
    computed once. So a cast reads each in 16 bits, after what computed it has found the largest on its way, at no
    byte; and it writes two layouts, for Hopper multiplies only rows by columns in 8 bits, and the gradient of a
    weight sums over tokens, for which input and gradient lie the other way round.

    What products alone take need not be written in 16 bits: computed again from what it came from, a norm or a
    rotated gradient moves 2 bytes less. So does each pair of gate's and up's gradients, which come from 3 numbers,
    read twice, in the place of 2 that are written and read. (The gate's product is as cheap either way; what
    attention writes, and the residual's gradients, are there in 16 bits anyway.)
    """
    model, tp = plan.model, plan.parallel.tp
    hidden, inner, kv = model.hidden_size, model.intermediate_size, model.num_kv_heads * model.head_size
    inputs = 2 * hidden + (hidden + inner) / tp  # of q, k, v; gate and up; the attention's output; down
    gradients = 2 * hidden + (hidden + 2 * kv + 2 * inner) / tp
    never_written = 2 * hidden + (_rotated(plan) + inner) / tp
    return CAST_BYTES * (inputs + gradients) - 2 * never_written


def _cast_weight_bytes(plan: Plan) -> float:
    """Once a step, in two layouts, for the input's gradient sums over outputs.

    The update finds the largest; what is sharded may be cast before it is gathered.
    """
    if plan.compute_precision != "fp8":
        return 0.0
    model = plan.model
    in_blocks = count_parameters(model) - count_embeddings(model)
    return CAST_BYTES * in_blocks / plan.parallel.tp / plan.parallel.pp / _shards(plan, from_stage=1)


def _image_elements(vision: VisionSpec, plan: Plan) -> float:
    """Of one image: norms, residuals and activations of the tower, forward; the projector's GELU both ways."""
    tower = (vision.image_tokens + 1) * (8 * vision.hidden_size + 2 * vision.intermediate_size)
    return vision.used_layers * tower + vision.image_tokens * 5 * plan.model.hidden_size


def _accumulation_bytes(plan: Plan) -> float:
    """From the second micro-batch on, a gradient is read to be added to."""
    element = ELEMENT_BYTES[plan.compute_precision]
    again = plan.hyper_parameters.gradient_accumulation_steps - 1
    return element * _trained(plan) / _shards(plan, from_stage=2) * again


def _shards(plan: Plan, from_stage: int) -> int:
    return plan.parallel.dp if plan.hyper_parameters.zero_stage >= from_stage else 1


def _trained(plan: Plan) -> float:
    """Parameters with a gradient on one chip, if nothing were sharded; adapters are too few to count."""
    hidden = plan.model.hidden_size
    decoder = count_parameters(plan.model) if trains_decoder(plan) else 0
    projector = 0 if plan.vision is None else hidden * (plan.vision.hidden_size + 1) + hidden * (hidden + 1)
    return (decoder + projector) / plan.parallel.tp / plan.parallel.pp
