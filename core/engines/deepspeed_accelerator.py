"""A DeepSpeed accelerator for devices that DeepSpeed does not know, over their CUDA-shaped torch module.

For vendors' plugins, in the hook ``prepare_engine``::

    from deepspeed.accelerator import set_accelerator
    set_accelerator(CudaShapedAccelerator(device, "ACME_VISIBLE_DEVICES"))

It implements ``deepspeed.accelerator.abstract_accelerator`` (written against DeepSpeed 0.19). None of DeepSpeed's
own operators exist for such a device: the optimizer is torch's or the vendor's, and the rest is plain torch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from deepspeed.accelerator.abstract_accelerator import DeepSpeedAccelerator
from deepspeed.ops.op_builder.cpu.no_impl import NotImplementedBuilder

from schemas.chip import Device

DELEGATED = {
    "set_device": "set_device", "current_device": "current_device", "device_count": "device_count",
    "synchronize": "synchronize", "is_available": "is_available", "device": "device", "stream": "stream",
    "current_stream": "current_stream", "default_stream": "default_stream", "lazy_call": "_lazy_call",
    "manual_seed": "manual_seed", "manual_seed_all": "manual_seed_all", "initial_seed": "initial_seed",
    "empty_cache": "empty_cache", "memory_stats": "memory_stats", "memory_allocated": "memory_allocated",
    "max_memory_allocated": "max_memory_allocated", "memory_reserved": "memory_reserved",
    "max_memory_reserved": "max_memory_reserved", "memory_cached": "memory_reserved",
    "max_memory_cached": "max_memory_reserved", "reset_peak_memory_stats": "reset_peak_memory_stats",
    "reset_max_memory_allocated": "reset_peak_memory_stats", "reset_max_memory_cached": "reset_peak_memory_stats",
}  # fmt: skip
"""DeepSpeed's method -> the function of the device's torch module."""
TENSOR_TYPES = {
    "BFloat16Tensor": torch.bfloat16, "ByteTensor": torch.uint8, "DoubleTensor": torch.double,
    "FloatTensor": torch.float, "HalfTensor": torch.half, "IntTensor": torch.int, "LongTensor": torch.long,
}  # fmt: skip


def _delegate(name: str) -> Any:
    return lambda self, *arguments, **keywords: getattr(self.module, name)(*arguments, **keywords)


def _tensor_type(dtype: torch.dtype) -> property:
    return property(lambda self: partial(torch.tensor, dtype=dtype, device=self.device_name()))


_Delegates: Any = type(
    "_Delegates",
    (),
    {method: _delegate(function) for method, function in DELEGATED.items()}
    | {name: _tensor_type(dtype) for name, dtype in TENSOR_TYPES.items()},
)


class NoOperator(NotImplementedBuilder):  # type: ignore[misc]
    """Stands for each of DeepSpeed's operators: none can be built, and loading one says so."""

    def is_compatible(self, verbose: bool = False) -> bool:
        """False, where DeepSpeed's own class claims that it can be built."""
        return False


class CudaShapedAccelerator(_Delegates, DeepSpeedAccelerator):  # type: ignore[misc]
    """DeepSpeed's view of ``device``'s type; ``visible_variable`` limits the devices of a process."""

    def __init__(self, device: Device, visible_variable: str) -> None:
        self.module = torch.get_device_module(device.type)
        self._name = device.type
        self._communication_backend_name = device.collective_backend
        self._compile_backend = "inductor"
        self._visible_variable = visible_variable

    def device_name(self, device_index: int | None = None) -> str:
        """``musa``, or ``musa:1``."""
        return self._name if device_index is None else f"{self._name}:{device_index}"

    def current_device_name(self) -> str:
        """Name of the selected device."""
        return self.device_name(self.module.current_device())

    def communication_backend_name(self) -> str:
        """The collective library's name for ``torch.distributed``."""
        return self._communication_backend_name

    def is_synchronized_device(self) -> bool:
        """False: kernels run asynchronously, so timers need the device's events and streams need waiting for."""
        return False

    use_host_timers = resolves_data_dependency = handles_memory_backpressure = is_synchronized_device

    def random(self) -> Any:
        """The module of torch's host generator."""
        return torch.random

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        """State of the device's generator."""
        state: torch.Tensor = self.module.get_rng_state(*(() if device_index is None else (device_index,)))
        return state

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        """Set the state of the device's generator."""
        self.module.set_rng_state(new_state, *(() if device_index is None else (device_index,)))

    def default_generator(self, device_index: int) -> torch.Generator:
        """The generator of one device."""
        generator: torch.Generator = self.module.default_generators[device_index]
        return generator

    @property
    def Stream(self) -> Any:  # noqa: N802 - DeepSpeed's name
        """The module's stream class."""
        return self.module.Stream

    @property
    def Event(self) -> Any:  # noqa: N802 - DeepSpeed's name
        """The module's event class."""
        return self.module.Event

    def total_memory(self, device_index: int | None = None) -> int:
        """Capacity, bytes."""
        return int(self.module.mem_get_info(device_index)[1])

    def available_memory(self, device_index: int | None = None) -> int:
        """Free memory, bytes."""
        return int(self.module.mem_get_info(device_index)[0])

    def is_bf16_supported(self) -> bool:
        """As the module tells."""
        return bool(self.module.is_bf16_supported())

    def is_fp16_supported(self) -> bool:
        """True: no training chip lacks it."""
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        """Types that a model may be kept in."""
        return [torch.float, torch.half, *([torch.bfloat16] if self.is_bf16_supported() else [])]

    def is_triton_supported(self) -> bool:
        """False: DeepSpeed's Triton kernels are written for CUDA."""
        return False

    def range_push(self, msg: str, domain: Any = None, category: Any = None) -> None:
        """Profiler ranges are not forwarded."""

    def range_pop(self, domain: Any = None) -> None:
        """Profiler ranges are not forwarded."""

    def create_graph(self) -> None:
        """None: graphs are not captured."""

    def capture_to_graph(self, graph: Any, pool: Any = None, stream: Any = None) -> Any:
        """Not reached, since ``create_graph`` makes none."""
        raise NotImplementedError(f"{self._name}: graphs are not captured")

    def replay_graph(self, graph: Any) -> None:
        """Not reached, since ``create_graph`` makes none."""
        raise NotImplementedError(f"{self._name}: graphs are not captured")

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` lies on such a device."""
        return tensor.device.type == self._name

    def op_builder_dir(self) -> str:
        """A package of DeepSpeed's that compiles nothing when it is imported."""
        return "deepspeed.ops.op_builder.cpu"

    def get_op_builder(self, class_name: str) -> Any:
        """The builder that builds nothing, whatever is asked for."""
        return NoOperator

    def create_op_builder(self, class_name: str) -> Any:
        """As ``get_op_builder``, made."""
        return NoOperator()

    def build_extension(self) -> Any:
        """The setuptools command for C++ extensions."""
        from torch.utils.cpp_extension import BuildExtension

        return BuildExtension

    def export_envs(self) -> list[str]:
        """Beginnings of variables that DeepSpeed's launcher, which is not used, would export."""
        return []

    def visible_devices_envs(self) -> list[str]:
        """The variable that limits the devices of a process."""
        return [self._visible_variable]

    def set_visible_devices_envs(self, current_env: dict[str, str], local_accelerator_ids: list[int]) -> None:
        """Limit a process that is to be started."""
        current_env[self._visible_variable] = ",".join(map(str, local_accelerator_ids))

    def get_compile_backend(self) -> str:
        """For ``torch.compile``."""
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        """For ``torch.compile``."""
        self._compile_backend = backend
