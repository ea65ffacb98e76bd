"""The verdict: how far a run's curves are from a reference's, and whether that is close enough.

A relative error in a step is ``|run - reference| / reference``. docs/alignment.md tells each condition's reason
and the measurements that the tolerances come from.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from core.align.refusals import refusals, refused
from schemas.plan import Plan
from schemas.record import Alignment, AlignmentCondition, ConditionName, Record
from schemas.reference import ReferenceCurve

FIRST_COMPARED_STEP = 21
LOSS_TOLERANCE = 0.02
"""Mean relative error of the loss from step 21 on: the rule of the published reports."""
FIRST_LOSS_TOLERANCE = 0.001
"""Of the first step's loss, which is computed before anything was learned."""
GRADIENT_NORM_TOLERANCE = 0.05
"""Mean relative error of the gradient norm over all steps."""
EARLY_STEPS = 5
"""Before training has amplified what rounding differs by; the gradient norm tells most about them."""
EARLY_TOLERANCE = 0.02
"""Mean relative error of the early gradient norms, where matrix products are not in fp32 on both sides."""
EARLY_TOLERANCE_FP32 = 1e-5
"""The same where they are: kernels differ by 5e-7 at most, products rounded to TF32 by 2e-5 at least."""

RECIPE = (
    "optimizer", "learning_rate", "min_learning_rate", "schedule", "schedule_steps", "lr_warmup_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad_norm", "z_loss",
)  # fmt: skip
"""Hyper-parameters that both runs should share; whether a difference matters, the curves tell."""


def judge(record: Record, reference: ReferenceCurve) -> Alignment:
    """Compare over all steps of the reference; UsageError, with every reason, when they cannot be compared."""
    plan, found = record.plan, refusals(record, reference)
    if plan is None or found:
        raise refused(f"{record.id} cannot be compared with reference {reference.id}", found)
    losses = relative_errors(record.loss.curve, reference.losses)
    norms = relative_errors(record.loss.grad_norm_curve, reference.gradient_norms)
    last = reference.steps
    early = early_tolerance(plan, reference.plan)
    return Alignment(
        reference=reference.id,
        reference_sha256=reference.sha256(),
        steps=last,
        conditions=(
            _condition("loss", losses, FIRST_COMPARED_STEP, last, LOSS_TOLERANCE),
            _condition("first_loss", losses, 1, 1, FIRST_LOSS_TOLERANCE),
            _condition("gradient_norm", norms, 1, last, GRADIENT_NORM_TOLERANCE),
            _condition("early_gradient_norm", norms, 1, EARLY_STEPS, early),
        ),
        recipe_differences=_recipe_differences(plan, reference.plan),
    )


def relative_errors(curve: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Step by step over the reference's steps; the run may have more."""
    return [abs(own - other) / other for own, other in zip(curve, reference, strict=False)]


def early_tolerance(plan: Plan, reference: Plan) -> float:
    """How closely the early gradient norms must agree, by what the runs compute matrix products in."""
    exact = plan.compute_precision == reference.compute_precision == "fp32"
    return EARLY_TOLERANCE_FP32 if exact else EARLY_TOLERANCE


def _condition(
    name: ConditionName, errors: Sequence[float], first: int, last: int, tolerance: float
) -> AlignmentCondition:
    error = statistics.fmean(errors[first - 1 : last])
    return AlignmentCondition(name=name, first_step=first, last_step=last, error=error, tolerance=tolerance)


def _recipe_differences(plan: Plan, reference: Plan) -> dict[str, str]:
    own, other = plan.hyper_parameters, reference.hyper_parameters
    pairs = {name: (getattr(own, name), getattr(other, name)) for name in RECIPE}
    return {name: f"{a} instead of {b}" for name, (a, b) in pairs.items() if a != b}
