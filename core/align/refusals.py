"""What makes two curves incomparable: each check gives the reason, with both values, and what to do about it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from core.errors import UsageError
from schemas.plan import Plan
from schemas.record import Record
from schemas.reference import ReferenceCurve

MIN_STEPS = 40
"""Of a reference: the published rule compares from step 21 on, and 20 steps are the fewest worth a mean."""
MIN_FALL = 0.20
"""By which a reference's loss must fall: at a learning rate of 1e-5, a doubled one moves the curve by 0.2%."""
LAST_STEPS = 10
"""Their mean is where a curve ends."""


class Refusal(NamedTuple):
    """Why, and what to do about it."""

    reason: str
    fix: str


class Pair(NamedTuple):
    """What the checks look at."""

    record: Record
    plan: Plan
    """The record's."""
    reference: ReferenceCurve


def fall(losses: Sequence[float]) -> float:
    """Share by which the loss fell: from the first step to the mean of the last ``LAST_STEPS``."""
    return 1 - statistics.fmean(losses[-LAST_STEPS:]) / losses[0]


def refusals_of_curve(losses: Sequence[float]) -> list[Refusal]:
    """What keeps a curve from being a reference."""
    found = []
    if len(losses) < MIN_STEPS:
        found.append(
            Refusal(
                f"a reference of {len(losses)} steps is too short: it needs {MIN_STEPS}",
                f"make it from a run with measure.warmup_steps + measure.steps of {MIN_STEPS} or more",
            )
        )
    elif min(losses) <= 0:
        found.append(
            Refusal(
                f"step {losses.index(min(losses)) + 1} of a reference has no loss: none of its tokens had a label",
                "make it of data, or with a global batch, that leaves labels in every step",
            )
        )
    elif fall(losses) < MIN_FALL:
        found.append(
            Refusal(
                f"a reference whose loss falls by {fall(losses):.1%} only is flat: below {MIN_FALL:.0%}, a wrong "
                "run would follow it as well",
                "make it at a learning rate at which the loss falls within its steps",
            )
        )
    return found


def refusals_of_run(record: Record) -> list[Refusal]:
    """What keeps a run from being compared, or from being made a reference."""
    if record.plan is None:
        return [Refusal(f"the {record.source} record holds no curves", "compare a measured run")]
    if record.status != "ok":
        return [Refusal(f"the run ended with status {record.status}", "compare a run that ended well")]
    steps, norms = len(record.loss.curve), len(record.loss.grad_norm_curve)
    found = []
    if norms != steps:
        found.append(
            Refusal(
                f"the run tells a gradient norm for {norms} of its {steps} steps",
                "compare a run whose engine tells it, and whose loss scaler skips no step",
            )
        )
    if record.loss.first_step > 1:
        found.append(
            Refusal(
                f"the run's curves begin with step {record.loss.first_step}, after a checkpoint",
                "compare a run that begins with step 1",
            )
        )
    if record.data_manifest_sha256 is None or record.weights_sha256 is None:
        found.append(
            Refusal("the run does not tell its data and initial weights", "run it again with this release")
        )
    return found


def refusals(record: Record, reference: ReferenceCurve) -> list[Refusal]:
    """Everything that makes this run and this reference incomparable; empty when a verdict can be given."""
    found = [*refusals_of_run(record), *refusals_of_curve(reference.losses)]
    if record.plan is None or record.status != "ok":
        return found
    pair = Pair(record, record.plan, reference)
    return found + [refusal for check in CHECKS if (refusal := check(pair))]


def refused(what: str, found: Sequence[Refusal]) -> UsageError:
    """The error that tells every reason, and what to do about each."""
    return UsageError(
        f"{what}: " + "; ".join(refusal.reason for refusal in found),
        "; ".join(dict.fromkeys(refusal.fix for refusal in found)),
    )


def _model(pair: Pair) -> Refusal | None:
    own, other = pair.plan.model.model_dump(), pair.reference.plan.model.model_dump()
    different = [f"{name} {own[name]} instead of {other[name]}" for name in own if own[name] != other[name]]
    if not different:
        return None
    return Refusal(f"another model: {', '.join(different)}", "run the reference's model")


def _data(pair: Pair) -> Refusal | None:
    own, other = pair.record.data_manifest_sha256, pair.reference.data_manifest_sha256
    if own in (other, None):
        return None
    return Refusal(
        f"other data: {pair.record.data} (manifest {_short(own)}) instead of {pair.reference.data} "
        f"(manifest {_short(other)})",
        "train on the reference's data (data.path, data.generated_sequences; the same release of sentencepiece)",
    )


def _weights(pair: Pair) -> Refusal | None:
    own, other = pair.record.weights_sha256, pair.reference.weights_sha256
    if own in (other, None):
        return None
    return Refusal(
        f"other initial weights: {pair.record.weights} {_short(own)} instead of {pair.reference.weights} "
        f"{_short(other)}",
        "use the reference's seed; another type of device draws other numbers from it: there, start both runs "
        "from one folder of safetensors (--set weights=DIR)",
    )


def _seed(pair: Pair) -> Refusal | None:
    return _number("seed", pair.plan.hyper_parameters.seed, pair.reference.plan.hyper_parameters.seed)


def _global_batch_size(pair: Pair) -> Refusal | None:
    refusal = _number("global batch size", pair.plan.global_batch_size, pair.reference.plan.global_batch_size)
    return refusal and Refusal(refusal.reason, "make LBS x GAS x DP the reference's")


def _sequence_length(pair: Pair) -> Refusal | None:
    own, other = pair.plan.hyper_parameters.sequence_length, pair.reference.plan.hyper_parameters.sequence_length
    return _number("sequence length", own, other)


def _steps(pair: Pair) -> Refusal | None:
    own, other = len(pair.record.loss.curve), pair.reference.steps
    if own >= other:
        return None
    return Refusal(
        f"the run has {own} steps, fewer than the reference's {other}",
        "raise measure.warmup_steps or measure.steps",
    )


def _number(name: str, own: int, other: int) -> Refusal | None:
    if own == other:
        return None
    return Refusal(f"another {name}: {own} instead of {other}", f"run with {name} {other}")


def _short(sha256: str | None) -> str:
    return (sha256 or "unknown")[:12]


CHECKS: Sequence[Callable[[Pair], Refusal | None]] = (
    _model,
    _data,
    _weights,
    _seed,
    _global_batch_size,
    _sequence_length,
    _steps,
)
