"""Emulated devices: what stands for a vendor's device in tests has ``__emulated__`` in its torch module."""

from __future__ import annotations


def is_emulated(device_type: str) -> bool:
    """Whether ``torch.<device_type>`` says that there is no such device behind it; for workers."""
    import torch

    return bool(getattr(getattr(torch, device_type, None), "__emulated__", False))
