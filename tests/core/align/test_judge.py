"""Each condition at its tolerance, and each reason for not comparing two curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.align.judge import judge
from core.errors import UsageError
from schemas.plan import Plan
from schemas.record import Alignment, Record
from schemas.reference import ReferenceCurve
from tests.core.align.conftest import LOSSES, NORMS, STEPS

MakeRecord = Callable[..., Record]
MakePlan = Callable[..., Plan]


def off(curve: tuple[float, ...], error: float, first: int = 1, last: int = STEPS) -> tuple[float, ...]:
    """``curve`` with a relative error in the steps ``first`` to ``last``, to either side in turn."""
    return tuple(
        value * (1 + error * (-1) ** step) if first <= step <= last else value
        for step, value in enumerate(curve, start=1)
    )


def over(alignment: Alignment) -> list[str]:
    return [condition.name for condition in alignment.conditions if not condition.holds]


def test_the_same_curves_are_aligned(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    alignment = judge(make_record(), reference)
    assert alignment.aligned
    assert [condition.error for condition in alignment.conditions] == [0.0] * 4
    assert (alignment.reference, alignment.steps) == ("curve", STEPS)
    assert alignment.reference_sha256 == reference.sha256()
    assert alignment.recipe_differences == {}


@pytest.mark.parametrize(
    ("losses", "norms", "failed"),
    [
        (off(LOSSES, 0.019, first=21), NORMS, []),
        (off(LOSSES, 0.021, first=21), NORMS, ["loss"]),
        (off(LOSSES, 0.5, first=2, last=20), NORMS, []),
        (off(LOSSES, 0.0009, last=1), NORMS, []),
        (off(LOSSES, 0.0011, last=1), NORMS, ["first_loss"]),
        (LOSSES, off(NORMS, 0.053, first=6), []),
        (LOSSES, off(NORMS, 0.056, first=6), ["gradient_norm"]),
        (LOSSES, off(NORMS, 0.9e-5, last=5), []),
        (LOSSES, off(NORMS, 1.1e-5, last=5), ["early_gradient_norm"]),
        (LOSSES, off(NORMS, 0.01, first=6), []),
    ],
)
def test_each_condition_has_its_steps_and_its_tolerance(
    losses: tuple[float, ...], norms: tuple[float, ...], failed: list[str], make_record: MakeRecord,
    reference: ReferenceCurve,
) -> None:  # fmt: skip
    alignment = judge(make_record(None, losses, norms), reference)
    assert over(alignment) == failed
    assert alignment.aligned == (not failed)


@pytest.mark.parametrize("precision", ["tf32", "amp", "bf16"])
def test_early_norms_may_differ_more_where_products_are_rounded(
    precision: str, planned: MakePlan, make_record: MakeRecord, reference: ReferenceCurve
) -> None:
    plan = planned({"precision": precision, "zero_stage": 0})
    assert judge(make_record(plan, LOSSES, off(NORMS, 0.019, last=5)), reference).aligned
    assert over(judge(make_record(plan, LOSSES, off(NORMS, 0.021, last=5)), reference)) == ["early_gradient_norm"]


def test_steps_beyond_the_reference_do_not_count(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    alignment = judge(make_record(None, (*LOSSES, 100.0), (*NORMS, 100.0)), reference)
    assert alignment.aligned
    assert alignment.steps == STEPS


def test_another_recipe_is_told_but_left_to_the_curves(
    planned: MakePlan, make_record: MakeRecord, reference: ReferenceCurve
) -> None:
    plan = planned({"learning_rate": 2e-5, "attention": "eager"})
    alignment = judge(make_record(plan), reference)
    assert alignment.aligned
    assert alignment.recipe_differences == {"learning_rate": "2e-05 instead of 1e-05"}


HP_REFUSALS = {
    "seed": ({"seed": 7}, "another seed: 7 instead of 1234"),
    "GBS": ({"local_batch_size": 2}, "another global batch size: 16 instead of 8"),
    "length": ({"sequence_length": 1024}, "another sequence length: 1024 instead of 2048"),
    "model": ({"model.num_layers": 2}, "another model: num_layers 2 instead of 4"),
}


@pytest.mark.parametrize("what", HP_REFUSALS)
def test_another_plan_is_refused(
    what: str, planned: MakePlan, make_record: MakeRecord, reference: ReferenceCurve
) -> None:
    sets, reason = HP_REFUSALS[what]
    with pytest.raises(UsageError, match=reason) as error:
        judge(make_record(planned(sets)), reference)
    assert error.value.what == f"toy-run cannot be compared with reference curve: {reason}"
    assert error.value.fix


RECORD_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "data": (
        {"data_manifest_sha256": "99" * 32, "data": "texts"},
        "other data: texts (manifest 999999999999) instead of generated (manifest dadadadadada)",
    ),
    "weights": (
        {"weights_sha256": "99" * 32, "weights": "pretrained"},
        "other initial weights: pretrained 999999999999 instead of random abababababab",
    ),
    "unknown weights": ({"weights_sha256": None}, "the run does not tell its data and initial weights"),
    "unknown data": ({"data_manifest_sha256": None}, "the run does not tell its data and initial weights"),
    "failed": ({"status": "nan", "reason": "loss is nan"}, "the run ended with status nan"),
    "published": ({"plan": None, "source": "published"}, "the published record holds no curves"),
}


@pytest.mark.parametrize("what", RECORD_REFUSALS)
def test_another_record_is_refused(what: str, make_record: MakeRecord, reference: ReferenceCurve) -> None:
    changes, reason = RECORD_REFUSALS[what]
    with pytest.raises(UsageError) as error:
        judge(make_record(**changes), reference)
    assert error.value.what == f"toy-run cannot be compared with reference curve: {reason}"


def test_a_run_with_fewer_steps_is_refused(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    with pytest.raises(UsageError, match="the run has 59 steps, fewer than the reference's 60"):
        judge(make_record(None, LOSSES[:-1], NORMS[:-1]), reference)


def test_a_run_without_all_gradient_norms_is_refused(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    with pytest.raises(UsageError, match="the run tells a gradient norm for 59 of its 60 steps"):
        judge(make_record(None, LOSSES, NORMS[1:]), reference)


def test_a_short_reference_is_refused(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    cut = {"losses": LOSSES[:39], "gradient_norms": NORMS[:39]}
    with pytest.raises(UsageError, match="a reference of 39 steps is too short: it needs 40"):
        judge(make_record(), reference.model_copy(update=cut))


def test_a_flat_reference_is_refused(make_record: MakeRecord, reference: ReferenceCurve) -> None:
    falls_by_19, falls_by_21 = ((5.0,) * 50 + (5.0 * (1 - share),) * 10 for share in (0.19, 0.21))
    record = make_record(None, falls_by_21)
    assert judge(record, reference.model_copy(update={"losses": falls_by_21})).aligned
    with pytest.raises(UsageError, match=r"whose loss falls by 19\.0% only is flat: below 20%"):
        judge(record, reference.model_copy(update={"losses": falls_by_19}))


def test_every_reason_is_told_at_once(
    planned: MakePlan, make_record: MakeRecord, reference: ReferenceCurve
) -> None:
    record = make_record(planned({"seed": 7, "sequence_length": 1024}), weights_sha256="99" * 32)
    with pytest.raises(UsageError) as error:
        judge(record, reference)
    for part in ("seed: 7", "sequence length: 1024", "initial weights"):
        assert part in error.value.what
    assert "run with seed 1234; run with sequence length 2048" in error.value.fix
