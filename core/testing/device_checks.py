"""Hooks that one worker calls: the device, what is told of it, and telemetry."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from core.clock import DeviceClock
from core.errors import DeviceError
from core.speed import product_time_s
from core.testing.check import DeviceScene, FailedError, NotRunError
from schemas.chip import PeakPrecision, TelemetryReading

BUSY_S = 1.0
SAMPLE_LIMIT_S = 11.0
"""A tool that a sample calls is given up after 10 s (``core.tools.TIMEOUT_S``)."""
REACHED = (0.45, 1.05)
"""Share of a dense peak that a large product reaches: 0.70 to 0.79 was seen. Of a sparse one, at most half."""
PRODUCT_WIDTH = 8192
DTYPES: dict[PeakPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def takes_device(scene: DeviceScene) -> str:
    """The device is what torch, the collectives and the plan know it as, and it computes."""
    device = scene.device
    total = float(torch.ones(8, device=device.torch_device).sum().item())
    if total != 8:
        raise FailedError(f"the sum of eight ones on {device.torch_device} is {total}")
    parsed = scene.torch_device
    if parsed.type != "cpu" and parsed.index != device.index:
        raise FailedError(f"torch_device {device.torch_device} and index {device.index} are not one device")
    if not dist.is_backend_available(device.collective_backend):
        raise FailedError(f"torch.distributed has no backend {device.collective_backend!r}")
    if not device.name.strip():
        raise FailedError("the device has no name")
    if not device.math_mode:
        raise FailedError("math_mode is empty: name every switch of the products' precision, as pinned")
    return f"{device.torch_device}, {device.name}, {device.collective_backend}"


def refuses_missing_device(scene: DeviceScene) -> str:
    """A rank without a device gets a DeviceError, and the others' device stays as it was."""
    counts = [result.count for result in scene.vendor.probe() if result.chip == scene.plan.chip.name]
    if not counts or counts[0] is None:
        raise NotRunError("any number of workers can share this device")
    try:
        scene.vendor.init_device(scene.plan, counts[0])
    except DeviceError as error:
        scene.vendor.init_device(scene.plan, scene.local_rank)
        return error.what
    except Exception as error:
        kind = type(error).__name__
        raise FailedError(f"init_device for a device that is not there raises {kind}, not DeviceError") from error
    raise FailedError(f"init_device takes local rank {counts[0]}, where there are {counts[0]} devices")


def describes_environment(scene: DeviceScene) -> str:
    """Texts by name, the same when asked again."""
    first = scene.vendor.describe_environment(scene.device)
    if scene.vendor.describe_environment(scene.device) != first:
        raise FailedError("describe_environment gave another answer when it was asked again")
    empty = [name for name, text in first.items() if not text.strip() or text == "None"]
    if empty:
        raise FailedError(f"{empty[0]!r} is {first[empty[0]]!r}; leave out what is unknown")
    return ", ".join(first) or "nothing"


def telemetry_is_sane(scene: DeviceScene) -> str:
    """While the device works: plausible numbers in the right units, and no 0 for what is unknown."""
    held = torch.ones(64 << 20, dtype=torch.float32, device=scene.torch_device)
    _keep_busy(scene.torch_device)
    began = time.perf_counter()
    reading = scene.vendor.collect_telemetry(scene.device)
    took_s = time.perf_counter() - began
    del held
    if reading is None:
        raise NotRunError("collect_telemetry told nothing: the vendor's library or tool is not here")
    if took_s > SAMPLE_LIMIT_S:
        raise FailedError(f"one sample took {took_s:.1f} s; it is asked for about once a second")
    known = reading.model_dump(exclude_none=True, exclude={"clock_limits"})
    if not known:
        raise NotRunError("collect_telemetry knows no value on this machine")
    _require_sane(reading)
    return ", ".join(f"{name} {value:g}" for name, value in known.items())


def _keep_busy(device: torch.device) -> None:
    clock, until = DeviceClock(device), time.perf_counter() + BUSY_S
    while time.perf_counter() < until:
        product_time_s(device, clock)


def _require_sane(reading: TelemetryReading) -> None:
    limits = {
        "power_w": (0, 5000),
        "temperature_c": (-40, 150),
        "utilisation_percent": (-1, 100),  # an idle moment is a true 0
        "sm_clock_mhz": (0, 10_000),
        "memory_used_gib": (0, 10_000),
    }
    for name, (lowest, highest) in limits.items():
        value = getattr(reading, name)
        if value is None:
            continue
        if value == 0 and name != "utilisation_percent":
            raise FailedError(f"{name} is 0 on a device at work; what is unknown is None")
        if not lowest < value <= highest:
            raise FailedError(f"{name} is {value:g}, which no device can be; check the unit")


def peaks_are_reached(scene: DeviceScene) -> str:
    """A large product reaches between half of each stated peak and all of it."""
    if scene.device.emulated or scene.plan.chip.emulated or scene.plan.chip.reference:
        raise NotRunError("an emulated or reference chip says nothing of speed")
    stated = {p: tflops for p in DTYPES if (tflops := scene.plan.chip.peak(p).tflops) is not None}
    if not stated:
        raise NotRunError(f"no peak of {scene.plan.chip.name} is stated")
    shares = {p: product_tflops(scene.torch_device, DTYPES[p]) / tflops for p, tflops in stated.items()}
    lowest, highest = REACHED
    for precision, share in shares.items():
        if share < lowest:
            raise FailedError(
                f"a {PRODUCT_WIDTH} wide {precision} product reaches {share:.0%} of the stated "
                f"{stated[precision]:g} TFLOP/s: is that the rate with sparsity?"
            )
        if share > highest:
            raise FailedError(f"a {precision} product reaches {share:.0%} of {stated[precision]:g} TFLOP/s")
    return ", ".join(f"{precision} {share:.0%}" for precision, share in shares.items())


def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """What a large square product reaches, TFLOP/s: the best of a few."""
    clock = DeviceClock(device)
    factor = torch.randn(PRODUCT_WIDTH, PRODUCT_WIDTH, device=device).to(dtype)
    out = torch.mm(factor, factor)
    times_s = []
    for _ in range(10):
        begin = clock.mark()
        torch.mm(factor, factor, out=out)
        end = clock.mark()
        clock.wait(end)
        times_s.append(clock.seconds_between(begin, end))
    return 2 * PRODUCT_WIDTH**3 / min(times_s) / 1e12
