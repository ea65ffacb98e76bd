"""PyTorch's slot for devices of other vendors, filled with host memory. See tests/emulators/README.md."""

from __future__ import annotations

import atexit
import importlib.util
import os
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from . import build, device_module

GIB = 1024**3


@dataclass(frozen=True)
class Chip:
    """What is emulated."""

    device_type: str
    """As torch spells it: ``musa``."""
    device_name: str
    """As the driver calls the card."""
    memory_gib: float
    collectives: str
    """The collective library's name in ``torch.distributed``."""
    capability: tuple[int, int]
    visible_variable: str
    fallback_warning: str = ""
    """Said, once an operator, when a missing one is computed on the host; where it is empty, that is an error."""


def install(module: ModuleType, chip: Chip) -> None:
    """Make ``module`` the torch module of such devices, ``torch.musa``; once a process, before any is used.

    Variables: EMULATED_DEVICES (8), EMULATED_MEMORY_GIB (the chip's), EMULATED_HELD_GIB (0; of it, by others),
    EMULATED_MISSING_OPERATORS (``aten::silu,aten::cumsum``).
    """
    native = _load()
    devices = int(os.environ.get("EMULATED_DEVICES", "8"))
    visible = os.environ.get(chip.visible_variable)
    if visible is not None:
        devices = min(devices, len([entry for entry in visible.split(",") if entry]))
    missing = {name for name in os.environ.get("EMULATED_MISSING_OPERATORS", "").split(",") if name}
    torch.utils.rename_privateuse1_backend(chip.device_type)
    native.register(
        devices,
        int(float(os.environ.get("EMULATED_MEMORY_GIB", chip.memory_gib)) * GIB),
        int(float(os.environ.get("EMULATED_HELD_GIB", "0")) * GIB),
        missing,
        chip.fallback_warning,
    )
    device_module.fill(module, native, chip.device_type, devices)
    module.get_device_name = lambda device=None: chip.device_name
    module.get_device_capability = lambda device=None: chip.capability
    module.__emulated__ = True
    torch._register_device_module(chip.device_type, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)

    def collectives(store: Any, rank: int, size: int, timeout: Any) -> Any:
        return native.collectives(dist.ProcessGroupGloo(store, rank, size, timeout=timeout), chip.collectives)

    dist.Backend.register_backend(chip.collectives, collectives, devices=[chip.device_type])
    # autograd's thread for the device needs the interpreter once while it starts: a process that ended right
    # after its first backward pass could abort.
    atexit.register(time.sleep, 0.05)


def _load() -> Any:
    spec = importlib.util.spec_from_file_location(build.NAME, build.library())
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    return native
