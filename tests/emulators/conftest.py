"""Which emulated device is installed: one an environment; tests of another one are skipped."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress
from types import ModuleType

import pytest

PACKAGES = {"musa": "torch_musa", "mlu": "torch_mlu"}


@pytest.fixture(scope="session")
def device_type() -> str:
    """Type of the installed one; a vendor's own package of that name is none."""
    for device_type, package in PACKAGES.items():
        with suppress(importlib.metadata.PackageNotFoundError):
            if "emulated" in importlib.metadata.version(package):
                return device_type
    pytest.skip("needs an emulated device: pip install tests/emulators/torch_musa, or torch_mlu")


@pytest.fixture(scope="session")
def device_module(device_type: str) -> ModuleType:
    """``torch.musa`` or ``torch.mlu``."""
    __import__(PACKAGES[device_type])
    import torch

    return torch.get_device_module(device_type)


@pytest.fixture(scope="session")
def musa(device_type: str) -> None:
    """Skips where it is another one."""
    if device_type != "musa":
        pytest.skip(f"this environment emulates {device_type}")


@pytest.fixture(scope="session")
def mlu(device_type: str) -> None:
    """Skips where it is another one."""
    if device_type != "mlu":
        pytest.skip(f"this environment emulates {device_type}")
