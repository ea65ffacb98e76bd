"""FLOPs per token by four rules, and MFU from them. Every formula travels with its number.

N is the number of parameters, L layers, H heads, Q head size, T sequence length; a product of an a×b and a b×c
matrix is 2abc FLOPs, and the backward pass costs twice the forward pass: once for the gradient of the input, once
for that of the weight. A frozen weight has no gradient of its own, which leaves 4 of the 6 FLOPs where a gradient
must cross it, and 2 where none does; attention has no weights. Under LoRA every weight of the model is frozen, and
only the adapters' are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schemas.chip import Peak, PeakPrecision
from schemas.hyperparameters import Attention, Checkpointing, HyperParameters
from schemas.model import DecoderSpec
from schemas.plan import Plan
from schemas.record import Mfu, Parameters, Throughput

FineTune = Literal["full", "lora", "multimodal", "projector"]
"""``multimodal`` trains projector and language model, ``projector`` the projector alone."""

FORMULAS: Mapping[FineTune, Mapping[str, str]] = {
    "full": {
        "flagperf": "6 * N_nominal (the rule of the published tables)",
        "palm": "6 * N + 12 * L * H * Q * T (Chowdhery et al., arXiv 2204.02311, appendix B)",
        "causal": "6 * (N - N_input_embedding) + 6 * L * H * Q * T (half the scores; a lookup is no product)",
        "hardware": "causal plus what activation checkpointing computes again",
    },
    "lora": {
        "flagperf": "4 * N_nominal (the rule of the published tables)",
        "palm": "4 * N_frozen + 6 * N_trainable + 12 * L * H * Q * T (palm, without gradients of frozen weights)",
        "causal": "4 * (N_frozen - N_input_embedding) + 6 * N_trainable + 6 * L * H * Q * T",
        "hardware": "causal plus what activation checkpointing computes again",
    },
    "multimodal": {
        "flagperf": "6 * N_nominal (the rule of the published tables)",
        "palm": "6 * N_trainable + 2 * N_tower * V + 12 * L * H * Q * T (palm; V patches of images a token, T the "
        "real length of a token's sequence, mean over the tokens)",
        "causal": "palm without 6 * N_input_embedding and half of 12 * L * H * Q * T",
        "hardware": "causal plus what activation checkpointing computes again",
    },
    "projector": {
        "flagperf": "4 * N_nominal (gradients cross the frozen language model)",
        "palm": "6 * N_trainable + 4 * N_frozen + 2 * N_tower * V + 12 * L * H * Q * T (palm, without "
        "gradients of frozen weights; V patches of images a token, T the real length of a token's sequence, mean "
        "over the tokens)",
        "causal": "palm without 4 * N_input_embedding and half of 12 * L * H * Q * T",
        "hardware": "causal plus what activation checkpointing computes again",
    },
}
_FROZEN = ("lora", "projector")
"""What leaves the language model's own weights as they are."""

_SCALED_DOWN = "no flagperf number: the model is scaled down, and N_nominal is the full one's"


@dataclass(frozen=True)
class Work:
    """What a run trains, as far as its FLOPs go."""

    model: DecoderSpec
    parameters: Parameters
    sequence_length: float
    """Of the sequence that a token is in, mean over the tokens."""
    checkpointing: Checkpointing
    attention: Attention = "sdpa"
    fine_tune: FineTune = "full"
    patches_per_token: float = 0.0
    """What a vision tower sees for each token that the language model does."""
    scaled_down: bool = False
    """The model is smaller than the case's, so that N_nominal is not its own."""

    @classmethod
    def of(cls, plan: Plan, parameters: Parameters, measured: Throughput | None = None) -> Work:
        """What ``plan`` trains; ``parameters`` are counted from the built model, lengths were ``measured``."""
        hp, vision = plan.hyper_parameters, plan.vision
        length = measured.attended_length if measured is not None else None
        images = measured.images_per_token if measured is not None else 0.0
        return cls(
            plan.model,
            parameters,
            length or hp.sequence_length,
            hp.activation_checkpointing,
            hp.attention,
            fine_tune=_fine_tune(plan),
            patches_per_token=0.0 if vision is None else images * (vision.image_tokens + 1),
            scaled_down=plan.scaled_down,
        )


def _fine_tune(plan: Plan) -> FineTune:
    if plan.lora is not None:
        return "lora"
    if plan.vision is None:
        return "full"
    return "projector" if plan.hyper_parameters.stage == "pretrain" else "multimodal"


def flops_per_token(work: Work) -> dict[str, float]:
    """Training FLOPs per token by each rule of ``FORMULAS`` that tells something of this model."""
    model, parameters = work.model, work.parameters
    each = 4.0 if work.fine_tune in _FROZEN else 6.0
    attention = 12.0 * model.num_layers * model.num_heads * model.head_size * work.sequence_length
    crossed = parameters.total - parameters.forward_only
    adapters = parameters.trainable if work.fine_tune in _FROZEN else 0
    tower = 2.0 * parameters.forward_only * work.patches_per_token
    palm = each * (crossed - adapters) + 6.0 * adapters + tower + attention
    causal = palm - each * model.vocab_size * model.hidden_size - attention / 2
    nominal = {} if work.scaled_down else {"flagperf": each * model.nominal_parameters}
    return nominal | {"palm": palm, "causal": causal, "hardware": causal + recomputed_per_token(work)}


def recomputed_per_token(work: Work) -> float:
    """FLOPs that the backward pass spends on forward work done before.

    ``full`` runs the blocks' forward again; torch leaves out each block's last product, whose result nothing
    needs, but the usual count, another forward, has it. ``selective`` keeps the results of all products with
    weights and of fused attention; only eager attention multiplies again.
    """
    model = work.model
    attention = 2.0 * model.num_layers * model.num_heads * model.head_size * work.sequence_length
    if work.checkpointing == "full":
        in_blocks = work.parameters.total - work.parameters.embedding - work.parameters.forward_only
        return 2.0 * in_blocks + attention
    return attention if work.checkpointing == "selective" and work.attention == "eager" else 0.0


def compute_precision(hp: HyperParameters) -> PeakPrecision:
    """What the matrix products run in: the autocast type under ``amp``, else the precision itself."""
    return hp.autocast_dtype if hp.precision == "amp" else hp.precision


def mfu(tokens_per_second_per_chip: float, work: Work, peak: Peak) -> Mfu:
    """Shares of the peak by each rule; without a peak, or where one exceeds it, no number but the reason.

    Of a scaled-down model there is no ``flagperf`` share, and the reason for that.
    """
    flops = flops_per_token(work)
    formulas = {rule: FORMULAS[work.fine_tune][rule] for rule in flops}
    known: dict[str, Any] = {"flops_per_token": flops, "formulas": formulas}
    known |= {"peak_precision": peak.precision, "peak_source": peak.source}
    if peak.tflops is None:
        return Mfu(missing=f"no {peak.precision} peak: {peak.source}", **known)
    known["peak_tflops"] = peak.tflops
    shares = {
        rule: tokens_per_second_per_chip * per_token / (peak.tflops * 1e12) for rule, per_token in flops.items()
    }
    beyond = {rule: share for rule, share in shares.items() if share > 1}
    if beyond:
        rule, share = next(iter(beyond.items()))
        reason = f"{rule} would be {share:.1%}: over the {peak.tflops} TFLOP/s {peak.precision} peak"
        return Mfu(missing=reason, **known)
    return Mfu(missing=_SCALED_DOWN if work.scaled_down else None, **shares, **known)
