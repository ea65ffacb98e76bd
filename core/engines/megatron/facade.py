"""A stand-in for ``torch.cuda`` on other devices, for code that assumes CUDA; megatron-core does.

A vendor's plugin calls :func:`install` in its hook ``prepare_engine``, before Megatron is imported. Nothing is
changed in Megatron. The parts of it that are used here ask three things of CUDA: where to allocate
(``torch.cuda.current_device()``, or a device called ``cuda``), to be moved there, and tensors' type names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_installed: _CudaMeans | None = None


def install(device: torch.device) -> None:
    """Let ``torch.cuda`` and devices called ``cuda`` mean ``device``, for the rest of the process and this thread.

    On CUDA itself, and when it is installed already, nothing is done.
    """
    global _installed  # noqa: PLW0603 - a mode that nobody holds would end when it is collected
    if device.type == "cuda" or _installed is not None:
        return
    torch.cuda.current_device = lambda: device  # type: ignore[assignment, return-value]  # factories take both
    _installed = _CudaMeans(device)
    _installed.__enter__()  # type: ignore[no-untyped-call]


class _CudaMeans(TorchFunctionMode):
    """Moves to ``device`` what is asked to be on CUDA, and calls its tensors by CUDA's type names."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0].to(self._device)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # Compared with torch.cuda.FloatTensor and the like.
            return "torch.cuda." + func(*args).rpartition(".")[2]
        asked = kwargs.get("device")
        if asked is not None and not isinstance(asked, int) and torch.device(asked).type == "cuda":
            kwargs = {**kwargs, "device": self._device}
        return func(*args, **kwargs)
