"""Counts where the host waits for a device on its way to a value, within a window that should not.

On CUDA torch itself tells (``torch.cuda.set_sync_debug_mode``); elsewhere the operators that cannot answer before
the device has are counted. Neither sees a wait for an event or for the whole device, which is how our loop's
declared ones are made: for the step before the last one, and at the ends of the window.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.launch import ROOT

_aten = torch.ops.aten
WAITING = frozenset(
    packet.default
    for packet in (
        _aten._local_scalar_dense,
        _aten.nonzero,
        _aten.equal,
        _aten.is_nonzero,
        _aten.masked_select,
        _aten._unique2,
    )
)
"""``.item()``, ``bool(tensor)``, and what has a shape that depends on values."""
_LIBRARIES = ("/torch/", "/contextlib.py", "/warnings.py")


def counted_waits(device: torch.device, window: Callable[[], object]) -> Counter[str]:
    """Runs ``window``; the place in the code -> how often the host waited there."""
    return _on_cuda(window) if device.type == "cuda" else _by_operator(window)


def _on_cuda(window: Callable[[], object]) -> Counter[str]:
    places: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):  # and not: this mode does not see all of them
            places[_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            window()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


def _by_operator(window: Callable[[], object]) -> Counter[str]:
    with _Waits() as mode:
        window()
    return mode.places


class _Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            self.places[_place()] += 1
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """The innermost line of code that is not torch's."""
    own = str(Path(__file__))
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != own and not any(part in frame.filename for part in _LIBRARIES):
            path = Path(frame.filename)
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-3:])
            return f"{shown}:{frame.lineno}"
    return "torch"
