"""Accelerator types, what a probe found, and what a vendor reads from a device."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import Name, Schema

PeakPrecision = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]
"""What the matrix products really run in; ``amp`` and ``tf32`` are resolved to one of these."""


class Peak(Schema):
    """The dense peak of one precision; ``tflops`` None where no number is public (MFU then prints ``/``)."""

    precision: PeakPrecision
    tflops: PositiveFloat | None
    source: str
    """Where the number comes from, or why there is none."""


class ChipSpec(Schema):
    """One accelerator type."""

    name: Name
    vendor: Name
    memory_gb: PositiveFloat | None
    """As marketed (GB or GiB as the vendor writes it); records carry the capacity read from the device."""
    memory_source: str
    peaks: tuple[Peak, ...]
    reference: bool = False
    """True for the embedded CPU default: its runs are for trying things out and are never ranked."""
    emulated: bool = False

    @model_validator(mode="after")
    def _one_peak_a_precision(self) -> Self:
        names = [peak.precision for peak in self.peaks]
        if len(set(names)) != len(names):
            raise ValueError(f"chip {self.name}: a precision has two peaks: {names}")
        return self

    def peak(self, precision: PeakPrecision) -> Peak:
        """The peak of ``precision``; one with ``tflops`` None where the vendor gives none."""
        for peak in self.peaks:
            if peak.precision == precision:
                return peak
        return Peak(precision=precision, tflops=None, source=f"no {precision} peak is recorded for {self.name}")


class ProbeResult(Schema):
    """Chips of one type that a vendor's plugin sees on this machine."""

    chip: str | None
    """Name of a ``ChipSpec``, or None for a device that the plugin does not know by name."""
    device_name: str
    """What the driver calls it."""
    count: PositiveInt | None
    """Devices visible; None where any number of workers can share it (the CPU)."""
    replaces: tuple[str, ...] = ()
    """Vendors whose probe sees the same hardware under another name and must step back."""


class Device(Schema):
    """What ``init_device`` set up in a worker."""

    torch_device: str
    """As torch spells it: ``cuda:0``, ``cpu``."""
    index: NonNegativeInt
    name: str
    collective_backend: str
    """Name for ``torch.distributed.init_process_group``: ``nccl``, ``gloo``."""
    math_mode: dict[str, str]
    """Every switch that changes the matrix products' precision, as pinned (for the record)."""
    emulated: bool = False

    @property
    def type(self) -> str:
        """Device type without the index: ``cuda``."""
        return self.torch_device.split(":")[0]


class MemoryReading(Schema):
    """Peaks since the last reset and the capacity, GiB; None where the vendor cannot tell."""

    peak_allocated_gib: NonNegativeFloat | None
    peak_reserved_gib: NonNegativeFloat | None
    peak_device_gib: NonNegativeFloat | None
    """Peak use of the device by everything on it."""
    capacity_gib: PositiveFloat | None
    allocation_retries: NonNegativeInt | None = None
    oom_count: NonNegativeInt | None = None


class TelemetryReading(Schema):
    """One sample; None where unknown, never 0 for it."""

    power_w: NonNegativeFloat | None = None
    temperature_c: float | None = None
    utilisation_percent: NonNegativeFloat | None = None
    sm_clock_mhz: NonNegativeFloat | None = None
    clock_limits: tuple[str, ...] | None = None
    """What holds the clocks down at this moment; empty where nothing does."""
    memory_used_gib: NonNegativeFloat | None = None
