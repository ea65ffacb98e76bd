"""Emulated devices: what stands for a vendor's device in tests has ``__emulated__`` in its torch module."""

from __future__ import annotations

import sys


def is_emulated(device_type: str) -> bool:
    """Whether ``torch.<device_type>``, once it is loaded, says that there is no such device behind it."""
    module = getattr(sys.modules.get("torch"), device_type, None)
    return bool(getattr(module, "__emulated__", False))
