"""What a record may say of its alignment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from core.align.judge import judge
from schemas.record import AlignmentCondition, Record
from schemas.reference import ReferenceCurve


def test_the_verdict_is_that_of_the_alignment(
    make_record: Callable[..., Record], reference: ReferenceCurve
) -> None:
    alignment = judge(make_record(), reference)
    assert make_record(aligned=True, alignment=alignment).aligned
    for claim in (False, None):
        with pytest.raises(ValidationError, match=f"aligned is {claim}, its alignment says True"):
            make_record(aligned=claim, alignment=alignment)


def test_a_published_verdict_needs_no_alignment(make_record: Callable[..., Record]) -> None:
    assert make_record(aligned=True).aligned


def test_the_tolerance_itself_is_close_enough() -> None:
    given = {"name": "loss", "first_step": 21, "last_step": 60, "tolerance": 0.02}
    assert AlignmentCondition.model_validate(given | {"error": 0.02}).holds
    assert not AlignmentCondition.model_validate(given | {"error": 0.0201}).holds
