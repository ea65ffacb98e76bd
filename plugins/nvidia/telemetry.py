"""What NVML (nvidia-ml-py) tells of the GPUs. It needs no CUDA context, so the launcher may ask it, too."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from core.errors import DeviceError
from schemas.chip import TelemetryReading
from schemas.units import GIB

_CONTROL_DEVICE = Path("/dev/nvidiactl")
T = TypeVar("T")


@functools.cache
def nvml() -> Any | None:
    """The initialised module ``pynvml``; None on a machine without NVIDIA's driver.

    DeviceError where the driver is there but the module is not: such GPUs would be passed over in silence.
    """
    try:
        import pynvml
    except ImportError as error:
        if _CONTROL_DEVICE.exists():
            raise DeviceError(
                "this machine has NVIDIA GPUs, but nvidia-ml-py is not installed", "pip install nvidia-ml-py"
            ) from error
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def visible_handles(lib: Any) -> list[Any]:
    """NVML handles in the order in which CUDA numbers the devices that this process sees.

    CUDA_VISIBLE_DEVICES holds indices, UUIDs, or beginnings of UUIDs (CUDA C++ programming guide, environment
    variables); what stands behind an entry that names no device is ignored.
    """
    handles = [lib.nvmlDeviceGetHandleByIndex(index) for index in range(lib.nvmlDeviceGetCount())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return handles
    named: list[Any] = []
    for entry in visible.split(","):
        handle = _named(lib, entry.strip(), handles)
        if handle is None:
            break
        named.append(handle)
    return named


def _named(lib: Any, entry: str, handles: list[Any]) -> Any | None:
    if entry.isdecimal():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-"):
        return known(lib, lambda: lib.nvmlDeviceGetHandleByUUID(entry))
    if not entry.startswith("GPU-"):
        return None
    fitting = [handle for handle in handles if lib.nvmlDeviceGetUUID(handle).startswith(entry)]
    return fitting[0] if len(fitting) == 1 else None


def known(lib: Any, read: Callable[[], T]) -> T | None:
    """What ``read`` returns; None where this device or driver does not tell it."""
    try:
        return read()
    except lib.NVMLError:
        return None


def device_names(lib: Any) -> list[str]:
    """The driver's name of each visible device; one that is split into MIG slices says so."""
    return [_name(lib, handle) for handle in visible_handles(lib)]


def _name(lib: Any, handle: Any) -> str:
    name = str(lib.nvmlDeviceGetName(handle))
    split = known(lib, lambda: lib.nvmlDeviceGetMigMode(handle)[0] == lib.NVML_DEVICE_MIG_ENABLE)
    return f"{name} (MIG)" if split and "MIG" not in name else name


def sample(index: int) -> TelemetryReading | None:
    """One reading of the device that torch calls ``cuda:index``; None without NVML."""
    lib = nvml()
    if lib is None:
        return None
    handles = visible_handles(lib)
    if index >= len(handles):
        return None
    handle = handles[index]
    power_mw = known(lib, lambda: lib.nvmlDeviceGetPowerUsage(handle))
    memory = known(lib, lambda: lib.nvmlDeviceGetMemoryInfo(handle))
    utilisation = known(lib, lambda: lib.nvmlDeviceGetUtilizationRates(handle))
    reasons = known(lib, lambda: lib.nvmlDeviceGetCurrentClocksEventReasons(handle))
    return TelemetryReading(
        power_w=None if power_mw is None else power_mw / 1000,
        temperature_c=known(lib, lambda: lib.nvmlDeviceGetTemperature(handle, lib.NVML_TEMPERATURE_GPU)),
        utilisation_percent=None if utilisation is None else utilisation.gpu,
        sm_clock_mhz=known(lib, lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM)),
        clock_limits=None if reasons is None else _clock_limits(lib, reasons),
        memory_used_gib=None if memory is None else memory.used / GIB,
    )


_CLOCK_LIMITS = {
    "nvmlClocksEventReasonApplicationsClocksSetting": "application clocks set",
    "nvmlClocksEventReasonSwPowerCap": "power cap",
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "thermal slowdown by the driver",
    "nvmlClocksEventReasonHwThermalSlowdown": "thermal slowdown by the hardware",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}


def describe(index: int) -> dict[str, str]:
    """Driver, power limit, ECC, NVLink and what holds the clocks down, as far as NVML tells; else nothing."""
    lib = nvml()
    handles = [] if lib is None else visible_handles(lib)
    if lib is None or index >= len(handles):
        return {}
    handle = handles[index]
    limit_mw = known(lib, lambda: lib.nvmlDeviceGetPowerManagementLimit(handle))
    ecc = known(lib, lambda: lib.nvmlDeviceGetEccMode(handle)[0])
    reasons = known(lib, lambda: lib.nvmlDeviceGetCurrentClocksEventReasons(handle))
    facts = {
        "nvidia_driver": known(lib, lib.nvmlSystemGetDriverVersion),
        "gpu_power_limit_w": None if limit_mw is None else f"{limit_mw / 1000:g}",
        "gpu_ecc": None if ecc is None else ("on" if ecc else "off"),
        "gpu_nvlinks": _nvlinks(lib, handle),
        "gpu_clock_limits": None if reasons is None else ", ".join(_clock_limits(lib, reasons)) or "none",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _nvlinks(lib: Any, handle: Any) -> str | None:
    """How many links are up."""
    states = [
        known(lib, partial(lib.nvmlDeviceGetNvLinkState, handle, n)) for n in range(lib.NVML_NVLINK_MAX_LINKS)
    ]
    told = [state for state in states if state is not None]
    return str(sum(told)) if told else None


def _clock_limits(lib: Any, reasons: int) -> tuple[str, ...]:
    return tuple(text for name, text in _CLOCK_LIMITS.items() if reasons & getattr(lib, name))
