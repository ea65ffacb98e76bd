"""What the driver tells of MetaX's cards: by its library (pymxsml of the SDK), else by its tool (mx-smi).

NVML, which torch.cuda would ask, does not exist there. Neither of the two needs a context on the device.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core import tools
from core.errors import DeviceError
from core.tools import Tool, number
from schemas.chip import TelemetryReading
from schemas.units import GIB

VISIBLE = ("MACA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""As MetaX's torch reads them: the first one wins."""
_DRIVER_DEVICE = Path("/dev/mxcd")
SMI = Tool("mx-smi", elsewhere="/opt/mxdriver/bin/mx-smi")
T = TypeVar("T")


@functools.cache
def mxsml() -> Any | None:
    """The initialised module ``pymxsml``; None without it, or where it finds no driver."""
    try:
        import pymxsml

        pymxsml.mxSmlInit()
    except Exception:  # the SDK's binding does not document what it raises
        return None
    return pymxsml


def device_names() -> list[str]:
    """The driver's name of each visible card; empty on a machine without any.

    DeviceError where the driver is there, but nothing that tells of it.
    """
    lib = mxsml()
    if lib is not None:
        return [str(lib.mxSmlGetDeviceInfo(index).deviceName) for index in _visible_in(lib)]
    cards = parse_smi(SMI.read())
    if not cards and _DRIVER_DEVICE.exists():
        raise DeviceError(
            f"this machine has MetaX cards ({_DRIVER_DEVICE}), but neither pymxsml nor mx-smi tells of them",
            "put the driver's mx-smi on the PATH, or install pymxsml from the MACA SDK (share/mxsml)",
        )
    return [cards[index].name for index in _visible_of(cards)]


def sample(index: int) -> TelemetryReading | None:
    """One reading of the card that torch calls ``cuda:index``; None where nothing tells of it."""
    lib = mxsml()
    if lib is not None:
        visible = _visible_in(lib)
        return _from_library(lib, visible[index]) if index < len(visible) else None
    cards = parse_smi(SMI.sample())
    visible = _visible_of(cards)
    return cards[visible[index]].reading if index < len(visible) else SMI.silence()


def known(read: Callable[[], T]) -> T | None:
    """What ``read`` returns; None where this card or driver does not tell it."""
    try:
        return read()
    except Exception:  # the SDK's binding does not document what it raises
        return None


def _visible_in(lib: Any) -> list[int]:
    count = int(lib.mxSmlGetDeviceCount())
    infos = [known(functools.partial(lib.mxSmlGetDeviceInfo, index)) for index in range(count)]
    uuids = [getattr(info, "uuid", None) for info in infos]
    return tools.visible_devices(VISIBLE, uuids)


def _from_library(lib: Any, device: int) -> TelemetryReading:
    """Units as in mx_sml.h: hundredths of a degree, mW for each of the board's ways, KiB."""
    hot = known(lambda: lib.mxSmlGetTemperatureInfo(device, lib.MXSML_TEMPERATURE_HOTSPOT))
    ways_mw = known(lambda: [way.power for way in lib.mxSmlGetBoardPowerInfo(device)])
    used_kib = known(lambda: lib.mxSmlGetMemoryInfo(device).vramUse)
    return TelemetryReading(
        power_w=sum(ways_mw) / 1000 if ways_mw else None,
        temperature_c=None if hot is None else hot / 100,
        utilisation_percent=known(lambda: lib.mxSmlGetDeviceIpUsage(device, lib.MXSML_USAGE_XCORE)),
        memory_used_gib=None if used_kib is None else used_kib * 1024 / GIB,
    )


# --- mx-smi ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """One card in the tool's table."""

    name: str
    reading: TelemetryReading


def is_of_metax(text: str) -> bool:
    """Whether ``text`` is from MetaX's tool; another vendor has one of the same name."""
    return "MetaX System Management Interface" in text or ("MX-SMI" in text and "MACA Version" in text)


def parse_smi(text: str | None) -> list[Card]:
    """The cards in the tool's table, two rows each; empty for another tool's output.

    Layouts differ: older ones have ``35C  56W`` and ``MXC500``, newer ones ``34C  97W / 350W`` with a state after
    it, and ``MetaX C500  Off`` with the persistence mode after the name.
    """
    cards: list[Card] = []
    name = busy = None
    for line in (text or "").splitlines() if is_of_metax(text or "") else ():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 3:
            continue
        head = re.fullmatch(r"\d+\s+(\S.*?)(?:\s+(?:On|Off))?", cells[0])
        used = re.match(r"(\d+)\s*/\s*\d+\s*MiB", cells[1])
        if head and re.match(r"\d+%|N/?A", cells[2]):
            name, busy = head[1], number(cells[2])
        elif used and name is not None:
            degrees, watts = (number(field) for field in [*cells[0].split(), "", ""][:2])
            reading = TelemetryReading(
                power_w=watts,
                temperature_c=degrees,
                utilisation_percent=busy,
                memory_used_gib=int(used[1]) / 1024,
            )
            cards.append(Card(name, reading))
            name = busy = None
    return cards


def smi_versions() -> dict[str, str]:
    """Versions in the head of the tool's table; those that it does not know are left out."""
    text = SMI.read() or ""
    if not is_of_metax(text):
        return {}
    named = {
        "metax_driver": r"Kernel Mode Driver Version:\s*(\S+)",
        "maca_system": r"MACA Version:\s*(\S+)",
        "metax_bios": r"BIOS Version:\s*(\S+)",
    }
    found = {name: re.search(pattern, text) for name, pattern in named.items()}
    return {name: hit[1] for name, hit in found.items() if hit and hit[1] != "unknown"}


def _visible_of(cards: list[Card]) -> list[int]:
    return tools.visible_devices(VISIBLE, [None] * len(cards))
