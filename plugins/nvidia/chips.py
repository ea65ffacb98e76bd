"""NVIDIA's accelerators: dense peaks and memory from the datasheets, and the names that the driver gives them."""

from __future__ import annotations

import re

from schemas.chip import ChipSpec, Peak, PeakPrecision

_PRECISIONS: tuple[PeakPrecision, ...] = ("fp32", "tf32", "fp16", "bf16", "fp8")
Rates = tuple[float, float, float, float | None]
"""TFLOP/s as a datasheet prints them: fp32 without matrix units, then tf32, fp16 and bf16, fp8 with them."""


def _dense(source: str, printed: Rates) -> tuple[Peak, ...]:
    """Of a datasheet that prints dense rates."""
    fp32, tf32, half, fp8 = printed
    return tuple(
        Peak(precision=precision, tflops=tflops, source=source if tflops else f"{source}: it has no {precision}")
        for precision, tflops in zip(_PRECISIONS, (fp32, tf32, half, half, fp8), strict=True)
    )


def _sparse(source: str, printed: tuple[float, float, float, float]) -> tuple[Peak, ...]:
    """Of a datasheet that prints matrix units with 2:4 sparsity: half of that, in whole TFLOP/s, when dense."""
    fp32, tf32, half, fp8 = printed
    return _dense(
        f"{source}; matrix units are printed with sparsity, halved", (fp32, tf32 // 2, half // 2, fp8 // 2)
    )


def _unknown(reason: str) -> tuple[Peak, ...]:
    return tuple(Peak(precision=precision, tflops=None, source=reason) for precision in _PRECISIONS)


def _chip(name: str, memory_gb: float | None, source: str, peaks: tuple[Peak, ...]) -> ChipSpec:
    return ChipSpec(name=name, vendor="nvidia", memory_gb=memory_gb, memory_source=source, peaks=peaks)


_A100 = "NVIDIA A100 Tensor Core GPU datasheet"
_A800 = "NVIDIA A800 Tensor Core GPU datasheet"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet"
_H200 = "NVIDIA H200 Tensor Core GPU datasheet"
_B200 = "NVIDIA HGX B200 datasheet"
_H800 = "published report of baichuan2_13b on H800"
_H800_PEAKS = f"as H100 SXM, since the {_H800} computes 16.3% from 989 bf16"
_H800_PCIE = "no datasheet of the H800 PCIe is public, and its limits are not those of the SXM part"
_H20 = "NVIDIA's specification as the press reported it in November 2023; no datasheet is public"

_AMPERE = (19.5, 156, 312, None)
_HOPPER_SXM = (67, 989, 1979, 3958)
_HOPPER_NVL = (60, 835, 1671, 3341)

CHIPS = (
    _chip("A100", 40, _A100, _dense(_A100, _AMPERE)),
    _chip("A100-80G", 80, _A100, _dense(_A100, _AMPERE)),
    _chip("A800", 80, _A800, _dense(_A800, _AMPERE)),
    _chip("H100", 80, _H100, _sparse(f"{_H100}, SXM", _HOPPER_SXM)),
    _chip("H100-PCIe", 80, _H100, _sparse(f"{_H100}, PCIe", (51, 756, 1513, 3026))),
    _chip("H100-NVL", 94, _H100, _sparse(f"{_H100}, NVL", _HOPPER_NVL)),
    _chip("H800", 80, _H800, _sparse(_H800_PEAKS, _HOPPER_SXM)),
    _chip("H800-PCIe", None, _H800_PCIE, _unknown(_H800_PCIE)),
    _chip("H200", 141, _H200, _sparse(f"{_H200}, SXM", _HOPPER_SXM)),
    _chip("H200-NVL", 141, _H200, _sparse(f"{_H200}, NVL", _HOPPER_NVL)),
    _chip("H20", 96, _H20, _dense(_H20, (44, 74, 148, 296))),
    _chip("B200", 180, _B200, _sparse(_B200, (75, 2200, 4500, 9000))),
)
"""The plain name is the SXM part, which the published reports mean by it."""

HOPPER = frozenset(chip.name for chip in CHIPS if chip.name.startswith("H"))
"""Chips of compute capability 9.0."""

_DRIVER_NAMES = {
    "A100": r"A100-(SXM4|PCIE)-40GB",
    "A100-80G": r"A100-SXM4-80GB|A100 80GB PCIe",
    "A800": r"A800-SXM4-80GB|A800 80GB PCIe",
    "H100": r"H100 80GB HBM3",
    "H100-PCIe": r"H100 PCIe",
    "H100-NVL": r"H100 NVL",
    "H800": r"H800",
    "H800-PCIe": r"H800 PCIe",
    "H200": r"H200",
    "H200-NVL": r"H200 NVL",
    "H20": r"H20",
    "B200": r"B200",
}


def match(device_name: str) -> str | None:
    """The chip that the driver calls ``device_name``; None for one that is not in ``CHIPS``.

    The whole name must fit: a part of a GPU (``... MIG 1g.10gb``), another memory (``H20-3e``) or form factor
    must not be credited with the peak of the part that its name begins with.
    """
    short = device_name.removeprefix("NVIDIA ")
    for chip, pattern in _DRIVER_NAMES.items():
        if re.fullmatch(pattern, short):
            return chip
    return None
