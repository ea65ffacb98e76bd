"""What the driver tells of Moore Threads' cards: by its library (mthreads-ml-py), else by its tool (mthreads-gmi).

Neither needs a context on the device, so the launcher may ask, too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from core import tools
from core.errors import DeviceError
from core.tools import Tool, number
from schemas.chip import TelemetryReading
from schemas.units import GIB

VISIBLE = ("MUSA_VISIBLE_DEVICES",)
GMI = Tool("mthreads-gmi", "-q", "-j")
_DRIVER_DEVICE = Path("/dev/mtgpu.0")
T = TypeVar("T")


@functools.cache
def mtml() -> Any | None:
    """The initialised module ``pymtml``; None without it, or where it finds no driver."""
    try:
        import pymtml
    except ImportError:
        return None
    try:
        pymtml.mtmlLibraryInit()
    except pymtml.MTMLError:
        return None
    return pymtml


def device_names() -> list[str]:
    """The driver's name of each visible card; empty on a machine without any.

    DeviceError where the driver is there, but nothing that tells of it.
    """
    lib = mtml()
    if lib is not None:
        return [str(lib.mtmlDeviceGetName(device)) for device in _visible_handles(lib)]
    cards = _cards(GMI.read())
    if not cards and _DRIVER_DEVICE.exists():
        raise DeviceError(
            f"this machine has Moore Threads cards ({_DRIVER_DEVICE}), but neither mthreads-ml-py nor "
            "mthreads-gmi tells of them",
            "pip install mthreads-ml-py, or put the driver's mthreads-gmi on the PATH",
        )
    return [str(_value(cards[index], "Product Name")) for index in _visible_cards(cards)]


def sample(index: int) -> TelemetryReading | None:
    """One reading of the card that torch calls ``musa:index``; None where nothing tells of it."""
    lib = mtml()
    if lib is not None:
        handles = _visible_handles(lib)
        return _from_library(lib, handles[index]) if index < len(handles) else None
    return parse_gmi(GMI.sample(), index) or GMI.silence()


def driver_version() -> str | None:
    """The kernel driver's."""
    lib = mtml()
    if lib is not None:
        return known(lib, lambda: str(lib.mtmlSystemGetDriverVersion(lib.mtmlLibraryInitSystem())))
    told = _document(GMI.read())
    version = _value(told, "Driver Version") if told else None
    return None if version is None else str(version)


def known(lib: Any, read: Callable[[], T]) -> T | None:
    """What ``read`` returns; None where this card or driver does not tell it."""
    try:
        return read()
    except lib.MTMLError:
        return None


def _visible_handles(lib: Any) -> list[Any]:
    handles = [lib.mtmlLibraryInitDeviceByIndex(index) for index in range(lib.mtmlLibraryCountDevice())]
    uuids = [known(lib, functools.partial(lib.mtmlDeviceGetUUID, handle)) for handle in handles]
    return [handles[index] for index in tools.visible_devices(VISIBLE, uuids)]


def _from_library(lib: Any, device: Any) -> TelemetryReading:
    power_mw = known(lib, lambda: lib.mtmlDeviceGetPowerUsage(device))

    def of_gpu(function: str) -> float | None:
        with lib.mtmlGpuContext(device) as gpu:
            return known(lib, lambda: getattr(lib, function)(gpu))

    def memory_used() -> int:
        with lib.mtmlMemoryContext(device) as memory:
            return int(lib.mtmlMemoryGetUsed(memory))

    used = known(lib, memory_used)
    return TelemetryReading(
        power_w=None if power_mw is None else power_mw / 1000,
        temperature_c=known(lib, lambda: of_gpu("mtmlGpuGetTemperature")),
        utilisation_percent=known(lib, lambda: of_gpu("mtmlGpuGetUtilization")),
        sm_clock_mhz=known(lib, lambda: of_gpu("mtmlGpuGetClock")),
        memory_used_gib=None if used is None else used / GIB,
    )


# --- mthreads-gmi -q -j ---------------------------------------------------------------------------------------

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "power_w": ("Power Readings/Power Draw", "power_draw"),
    "temperature_c": ("Temperature/GPU Current Temp", "temperature"),
    "utilisation_percent": ("Utilization/Gpu", "gpu_utilization"),
    "sm_clock_mhz": ("Clocks/Graphics",),
    "memory_used_mib": ("FB Memory Usage/Used", "memory_used"),
}
"""Field -> where the tool's layouts have it: nested sections with titles, or flat keys."""


def parse_gmi(text: str | None, index: int) -> TelemetryReading | None:
    """The reading of the visible card ``index`` in the tool's JSON; None when that does not hold it."""
    cards = _cards(text)
    visible = _visible_cards(cards)
    if index >= len(visible):
        return None
    card = cards[visible[index]]
    values = {field: number(_value(card, *paths)) for field, paths in LAYOUTS.items()}
    used_mib = values.pop("memory_used_mib")
    return TelemetryReading(memory_used_gib=None if used_mib is None else used_mib / 1024, **values)


def _document(text: str | None) -> dict[str, Any] | None:
    try:
        told = json.loads(text or "")
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _cards(text: str | None) -> list[dict[str, Any]]:
    told = _document(text)
    cards = _value(told, "GPU", "gpus") if told else None
    named = cards if isinstance(cards, list) else []
    return [card for card in named if isinstance(card, dict) and _value(card, "Product Name") is not None]


def _visible_cards(cards: list[dict[str, Any]]) -> list[int]:
    return tools.visible_devices(VISIBLE, [_value(card, "GPU UUID") for card in cards])


def _value(of: Any, *paths: str) -> Any:
    """The first of ``paths`` (keys joined by ``/``) that ``of`` has a plain value for, None without any."""
    for path in paths:
        found = of
        for key in path.split("/"):
            found = _member(found, key)
        if found is not None and not isinstance(found, dict):
            return found
    return None


def _member(of: Any, key: str) -> Any:
    """``of[key]``, however the tool writes the key: ``Power Draw ``, ``power_draw``."""
    named = of if isinstance(of, dict) else {}
    return next((value for name, value in named.items() if _plain(name) == _plain(key)), None)


def _plain(key: str) -> str:
    return key.strip().lower().replace("_", " ")
