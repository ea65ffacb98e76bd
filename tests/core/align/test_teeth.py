"""Runs that train wrongly fail alignment, and runs that differ in kernels and layout only pass it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("torch")

from core.align.judge import judge
from core.align.references import find_reference, make_reference
from core.errors import UsageError
from schemas.record import Alignment, Record
from tests.core.align.variants import DEEPSPEED, FAULTY, FAULTY_IN_16_BITS, HONEST, HONEST_IN_16_BITS, ON_GPU

pytestmark = pytest.mark.slow  # two dozen trainings of 60 steps

GetRecord = Callable[[str], Record]


@pytest.fixture
def kept(record: GetRecord) -> Callable[[str], Alignment]:
    """The verdict on a variant by the reference that its case keeps."""

    def verdict(name: str) -> Alignment:
        return judge(record(name), find_reference("cpu_fp32", record(name)))

    return verdict


def errors(alignment: Alignment) -> dict[str, float]:
    return {condition.name: condition.error for condition in alignment.conditions}


def over(alignment: Alignment) -> set[str]:
    return {condition.name for condition in alignment.conditions if not condition.holds}


@pytest.mark.parametrize("name", HONEST)
def test_other_kernels_and_layouts_are_aligned(name: str, kept: Callable[[str], Alignment]) -> None:
    alignment = kept(name)
    assert alignment.aligned, errors(alignment)
    # Far from the tolerances: nothing here but the order of sums differs.
    assert errors(alignment)["loss"] < 1e-5
    assert errors(alignment)["early_gradient_norm"] < 2e-6


@pytest.mark.parametrize("name", HONEST_IN_16_BITS)
def test_16_bit_products_are_aligned_with_fp32(name: str, kept: Callable[[str], Alignment]) -> None:
    alignment = kept(name)
    assert alignment.aligned, errors(alignment)


@pytest.mark.deepspeed
@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_is_aligned(name: str, kept: Callable[[str], Alignment]) -> None:
    pytest.importorskip("deepspeed")
    alignment = kept(name)
    assert alignment.aligned, errors(alignment)


CAUGHT_BY = {
    "doubled_learning_rate": {"loss", "gradient_norm"},
    "no_causal_mask": {"loss", "gradient_norm"},
    "no_gradient_reduction": {"loss", "gradient_norm"},
    "labels_one_further": {"loss", "gradient_norm"},
    "tf32_under_fp32": {"early_gradient_norm"},
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_not_aligned(name: str, kept: Callable[[str], Alignment]) -> None:
    alignment = kept(name)
    assert not alignment.aligned
    assert over(alignment) >= CAUGHT_BY[name], errors(alignment)


@pytest.mark.parametrize("name", FAULTY_IN_16_BITS)
def test_a_fault_is_not_aligned_in_16_bits_either(name: str, kept: Callable[[str], Alignment]) -> None:
    alignment = kept(name)
    assert over(alignment) >= {"loss", "gradient_norm", "early_gradient_norm"}, errors(alignment)


def test_rounding_to_tf32_is_far_from_the_tolerance_on_both_sides(kept: Callable[[str], Alignment]) -> None:
    tolerance = next(c.tolerance for c in kept("eager").conditions if c.name == "early_gradient_norm")
    honest = max(errors(kept(name))["early_gradient_norm"] for name in HONEST)
    assert 5 * honest < tolerance < errors(kept("tf32_under_fp32"))["early_gradient_norm"] / 5


def test_the_other_case_keeps_a_reference_too(kept: Callable[[str], Alignment]) -> None:
    assert kept("alibi_eager").aligned
    assert kept("alibi_fast").aligned
    assert over(kept("alibi_no_mask")) >= {"loss", "first_loss", "gradient_norm", "early_gradient_norm"}


def test_a_flat_curve_would_let_a_fault_pass_the_published_rule(record: GetRecord) -> None:
    flat, doubled = record("flat"), record("flat_doubled")
    pairs = zip(doubled.loss.curve[20:], flat.loss.curve[20:], strict=True)
    assert max(abs(own - other) / other for own, other in pairs) < 0.02
    with pytest.raises(UsageError, match="is flat"):
        make_reference(flat, "flat")


@pytest.mark.gpu
def test_on_a_gpu(record: GetRecord) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or "H200" not in torch.cuda.get_device_name():
        pytest.skip("needs an H200")
    reference = make_reference(record("gpu_eager"), "gpu")
    found = {name: judge(record(name), reference) for name in ON_GPU}
    told = {name: errors(alignment) for name, alignment in found.items()}
    assert {name for name, alignment in found.items() if not alignment.aligned} == {"gpu_tf32"}, told
