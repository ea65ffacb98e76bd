"""What an error that ended a rank stands for: a status, and a reason of one line.

All of it is found out after the error, from its text and its traceback: a run that goes well pays nothing.
"""

from __future__ import annotations

import re
import traceback
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from core.errors import AccelMarkError
from schemas.chip import MemoryReading

if TYPE_CHECKING:
    import torch

    from schemas.event import Status

LONGEST_REASON = 500
_MISSING = (
    re.compile(r"Could not run '(?P<operator>[\w:.]+)' with arguments from the"),
    re.compile(r"The operator '(?P<operator>[\w:.]+)' is not currently (?:implemented|supported)"),
    re.compile(r"^(?P<operator>\w+_overrideable) not implemented"),
    re.compile(r"\"(?P<operator>\w+)\" not implemented for '(?P<dtype>\w+)'"),
)
"""How torch says that a device has no kernel: none at all (three wordings), or none for a type of numbers."""


class Context:
    """What a rank has at hand when something fails. It holds no model alive."""

    def __init__(self, vendor: str) -> None:
        self.vendor = vendor
        self.read_memory: Callable[[], MemoryReading] | None = None
        """Of the device; None before there is one."""
        self._models: list[weakref.ref[torch.nn.Module]] = []

    def add(self, model: torch.nn.Module) -> None:
        """A stage of the model has been built."""
        self._models.append(weakref.ref(model))

    @property
    def models(self) -> list[torch.nn.Module]:
        """The stages that are still there."""
        return [model for held in self._models if (model := held()) is not None]

    def memory(self) -> MemoryReading | None:
        """The device's memory peaks now; None before there is a device, and where it answers no more."""
        if self.read_memory is None:
            return None
        with suppress(Exception):  # a failed device may fail here, too, which is not what ended the run
            return self.read_memory()
        return None


def classify(error: BaseException, context: Context) -> tuple[Status, str]:
    """The status and reason for ``error``."""
    import torch

    from core.loop import NonFiniteError

    text = f"{type(error).__name__}: {error}"
    if isinstance(error, AccelMarkError):
        text = f"{error.what} (fix: {error.fix})"
    reason = (text.splitlines() or [type(error).__name__])[0]
    reason = reason if len(reason) <= LONGEST_REASON else reason[: LONGEST_REASON - 2].rstrip() + " …"
    if isinstance(error, NonFiniteError):
        return "nan", reason
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted (KeyboardInterrupt)"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _says_out_of_memory(error):
        return "oom", reason
    operator = missing_operator(error)
    if operator is not None:
        where = model_part(error, context.models)
        return "crashed", f"vendor {context.vendor} has no {operator}, needed in {where}: {reason}"
    return "crashed", reason


def _says_out_of_memory(error: BaseException) -> bool:
    """Allocators outside of CUDA's, the CPU's among them, raise a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def missing_operator(error: BaseException) -> str | None:
    """``operator aten::silu``, or ``addmm for Half``, when ``error`` says that the device lacks it; else None."""
    if not isinstance(error, RuntimeError):  # NotImplementedError is one
        return None
    for pattern in _MISSING:
        if found := pattern.search(str(error)):
            said = found.groupdict()
            return f"operator {said['operator']}" + (f" for {said['dtype']}" if "dtype" in said else "")
    return None


def model_part(error: BaseException, models: Iterable[torch.nn.Module]) -> str:
    """The innermost module that was at work when ``error`` was raised, by its path in the model.

    A compiled block is one piece. Of a backward pass torch tells no module, but where it computes a checkpointed
    block's forward pass again.
    """
    paths = {id(module): path for model in models for path, module in model.named_modules() if path}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    at_work = [paths[id(held)] for frame in frames if id(held := frame.f_locals.get("self")) in paths]
    if at_work:
        return f"module {at_work[-1]}"
    backward = any(frame.f_code.co_name == "_engine_run_backward" for frame in frames)
    return "the backward pass" if backward else "no module of the model"


def told(reading: MemoryReading) -> str:
    """The device's own numbers, for the reason of a run that ran out of its memory."""
    peaks = {
        "allocated": reading.peak_allocated_gib,
        "reserved": reading.peak_reserved_gib,
        "used by all": reading.peak_device_gib,
    }
    known = ", ".join(f"{name} {peak:.2f}" for name, peak in peaks.items() if peak is not None)
    return f"peak GiB: {known}, of {reading.capacity_gib:.2f}" if reading.capacity_gib else f"peak GiB: {known}"
