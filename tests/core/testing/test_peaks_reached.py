"""What a product reaches on the device tells a rate with sparsity from a dense one, however it is sourced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from core.testing import device_checks
from core.testing.check import FailedError, NotRunError
from schemas.chip import ChipSpec, Peak

DENSE = {"fp32": 67.0, "tf32": 494.0, "fp16": 989.0, "bf16": 989.0}
REACHED = {"float32": 52.0, "float16": 720.0, "bfloat16": 760.0}
"""Like an H200's."""


@pytest.fixture(autouse=True)
def _reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_checks, "product_tflops", lambda device, dtype: REACHED[str(dtype)[6:]])


def scene(peaks: dict[str, float], **of_device: bool) -> Any:
    stated = tuple(Peak(precision=p, tflops=tflops, source="datasheet") for p, tflops in peaks.items())
    chip = ChipSpec(name="X1", vendor="acme", memory_gb=None, memory_source="none", peaks=stated)
    device = SimpleNamespace(emulated=of_device.get("emulated", False))
    return SimpleNamespace(device=device, plan=SimpleNamespace(chip=chip), torch_device=None)


def test_dense_peaks_are_reached_by_half_and_more() -> None:
    assert device_checks.peaks_are_reached(scene(DENSE)) == "fp32 78%, fp16 73%, bf16 77%"


def test_peaks_that_are_all_with_sparsity_are_not_reached() -> None:
    """Their ratios to each other are those of dense ones, and no source speaks of it."""
    with pytest.raises(FailedError, match=r"fp16 product reaches 36% of the stated 1978 .* with sparsity\?"):
        device_checks.peaks_are_reached(scene(DENSE | {"tf32": 988.0, "fp16": 1978.0, "bf16": 1978.0}))


def test_a_peak_that_is_exceeded_is_none() -> None:
    with pytest.raises(FailedError, match="bf16 product reaches 152% of 500 TFLOP/s"):
        device_checks.peaks_are_reached(scene({"bf16": 500.0}))


def test_without_a_real_device_or_a_stated_peak_nothing_is_said() -> None:
    with pytest.raises(NotRunError, match="says nothing of speed"):
        device_checks.peaks_are_reached(scene(DENSE, emulated=True))
    with pytest.raises(NotRunError, match="no peak of X1 is stated"):
        device_checks.peaks_are_reached(scene({}))
