"""What the driver tells of Cambricon's devices, by its tool cnmon. It needs no context on the device.

``cnmon info -j`` leaves its JSON in the folder where it runs. That has no power, which only the tool's table has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from core import tools
from core.errors import DeviceError
from core.tools import Tool, number
from schemas.base import Schema
from schemas.chip import TelemetryReading

VISIBLE = ("MLU_VISIBLE_DEVICES",)
INFO = Tool("cnmon", "info", "-e", "-m", "-u", "-j", writes="cnmon_info.json")
TABLE = Tool("cnmon")
_DRIVER_DEVICE = Path("/dev/cambricon_ctl")


class Card(Schema):
    """One device as the tool lists it."""

    name: str
    uuid: str | None
    reading: TelemetryReading


def device_names() -> list[str]:
    """The driver's name of each visible device; empty on a machine without any.

    DeviceError where the driver is there, but nothing that tells of it.
    """
    cards = parse_table(TABLE.read()) or parse_info(INFO.read())
    if not cards and _DRIVER_DEVICE.exists():
        raise DeviceError(
            f"this machine has Cambricon MLUs ({_DRIVER_DEVICE}), but cnmon does not tell of them",
            "put the driver's cnmon on the PATH, and check that it runs",
        )
    return [cards[index].name for index in _visible(cards)]


def sample(index: int) -> TelemetryReading | None:
    """One reading of the device that torch calls ``mlu:index``; None where nothing tells of it."""
    detailed, listed = parse_info(INFO.sample()), parse_table(TABLE.sample())
    cards = detailed or listed
    visible = _visible(cards)
    if index >= len(visible):
        return INFO.silence()
    number_of_card = visible[index]
    reading = cards[number_of_card].reading
    if number_of_card >= len(listed):
        return reading
    return reading.model_copy(update={"power_w": listed[number_of_card].reading.power_w})


def driver_version() -> str | None:
    """The driver's, from the head of the tool's table."""
    found = re.search(r"Driver\s+v(\S+)", TABLE.read() or "")
    return found[1] if found else None


def _visible(cards: list[Card]) -> list[int]:
    return tools.visible_devices(VISIBLE, [card.uuid for card in cards])


# --- cnmon info -e -m -u -j -----------------------------------------------------------------------------------


def parse_info(text: str | None) -> list[Card]:
    """The devices in the tool's JSON, by their numbers; empty when that is not it."""
    try:
        told = json.loads(text or "")
        listed = sorted(told["CnmonInfo"], key=lambda card: number(card["CardNum"]) or 0)
        return [_card(card) for card in listed]
    except (ValueError, KeyError, TypeError):
        return []


def _card(told: dict[str, Any]) -> Card:
    used_mib = number(told.get("PhysicalMemUsage", {}).get("Used"))
    reading = TelemetryReading(
        temperature_c=number(told.get("Temperature", {}).get("Chip")),
        utilisation_percent=number(told.get("Utilization", {}).get("MLUAverage")),
        memory_used_gib=None if used_mib is None else used_mib / 1024,
    )
    return Card(name=told["ProductName"], uuid=told.get("UUID"), reading=reading)


# --- cnmon ----------------------------------------------------------------------------------------------------

_NAME = re.compile(r"^\|\s*\d+\s+\S+\s+(MLU\S+)\s.*\|[^|]*\|\s*(\d+%|\S+)[^|]*\|\s*$")
_READING = re.compile(r"^\|\s*\S+\s+(\S+)\s+(\S+)\s*W\s*/[^|]*\|\s*(\S+)\s*MiB\s*/[^|]*\|")


def parse_table(text: str | None) -> list[Card]:
    """The devices in the tool's table, two rows each; empty when that is not it.

    Power is that of the board, which the two devices of an MLU370-X8 share: each of them shows all of it.
    """
    cards: list[Card] = []
    name = busy = None
    for line in (text or "").splitlines() if "CNMON" in (text or "") else ():
        if head := _NAME.match(line.strip()):
            name, busy = head[1], head[2]
        elif (row := _READING.match(line.strip())) and name is not None:
            used_mib = number(row[3])
            reading = TelemetryReading(
                power_w=number(row[2]),
                temperature_c=number(row[1]),
                utilisation_percent=number(busy),
                memory_used_gib=None if used_mib is None else used_mib / 1024,
            )
            cards.append(Card(name=name, uuid=None, reading=reading))
            name = busy = None
    return cards
