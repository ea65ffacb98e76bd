"""The functions of a torch module for a device, in the shape of ``torch.cuda``, over the compiled part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

ACCELERATOR = torch.accelerator


def fill(module: ModuleType, native: Any, name: str, devices: int) -> None:
    """Put everything that torch and frameworks ask of ``torch.<name>`` into ``module``."""
    for made in (_devices(native, name, devices), _streams(name), _memory(name), _generators(native, devices)):
        vars(module).update(made)


def _index(name: str, device: Any = None) -> int:
    """The number of ``device``: None (the current one), a number, or what torch takes for a device."""
    if isinstance(device, int):
        return device
    named = torch.device(name if device is None else device)
    if named.type != name:
        raise ValueError(f"expected a {name} device, but got {named}")
    return ACCELERATOR.current_device_index() if named.index is None else named.index


def _devices(native: Any, name: str, devices: int) -> dict[str, Any]:
    class Device:
        """Selects a device for a block; -1 and None leave it."""

        def __init__(self, device: Any) -> None:
            self._index = -1 if device is None else _index(name, device)

        def __enter__(self) -> None:
            self._before = native.exchange_device(self._index)

        def __exit__(self, *error: object) -> None:
            native.exchange_device(self._before)

    class DeviceOf(Device):
        """Selects the device of a tensor."""

        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__(tensor.device if tensor.device.type == name else None)

    def properties(device: Any = None) -> SimpleNamespace:
        total = ACCELERATOR.get_memory_info(_index(name, device))[1]
        return SimpleNamespace(name=f"{name}:{_index(name, device)}", total_memory=total, multi_processor_count=1)

    return {
        "is_available": lambda: devices > 0,
        "device_count": lambda: devices,
        "current_device": native.current_device,
        "set_device": lambda device: native.exchange_device(_index(name, device)) and None,
        "_exchange_device": native.exchange_device,
        "_maybe_exchange_device": native.exchange_device,
        "device": Device,
        "device_of": DeviceOf,
        "synchronize": lambda device=None: None,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "_lazy_init": lambda: None,
        "_lazy_call": lambda function, **options: function(),
        "get_device_properties": properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16, torch.float32],
    }


def _streams(name: str) -> dict[str, Any]:
    def on(device: Any = None) -> torch.device:
        return torch.device(name, _index(name, device))

    class Stream:
        """Makes torch's own stream, on this device."""

        def __new__(cls, device: Any = None, priority: int = 0, **identity: Any) -> Any:
            if identity:
                return torch.Stream(**identity)
            return torch.Stream(device=on(device), priority=priority)

    class Event:
        """Makes torch's own event, on this device: its ``elapsed_time`` takes no subclass."""

        def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Any:
            return torch.Event(
                device=name, enable_timing=enable_timing, blocking=blocking, interprocess=interprocess
            )

    def default_stream(device: Any = None) -> torch.Stream:
        kind = int(torch._C._autograd.DeviceType.PrivateUse1.value)
        return torch.Stream(stream_id=0, device_index=_index(name, device), device_type=kind)

    @contextmanager
    def stream(chosen: torch.Stream | None) -> Iterator[torch.Stream | None]:
        if chosen is None:
            yield None
            return
        before = ACCELERATOR.current_stream(chosen.device)
        ACCELERATOR.set_stream(chosen)
        try:
            yield chosen
        finally:
            ACCELERATOR.set_stream(before)

    return {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: ACCELERATOR.current_stream(on(device)),
        "default_stream": default_stream,
        "set_stream": ACCELERATOR.set_stream,
        "stream": stream,
    }


def _memory(name: str) -> dict[str, Any]:
    def of(function: Any) -> Any:
        return lambda device=None: function(_index(name, device))

    reset = of(ACCELERATOR.reset_peak_memory_stats)
    return {
        "memory_stats": of(ACCELERATOR.memory_stats),
        "memory_allocated": of(ACCELERATOR.memory_allocated),
        "max_memory_allocated": of(ACCELERATOR.max_memory_allocated),
        "memory_reserved": of(ACCELERATOR.memory_reserved),
        "max_memory_reserved": of(ACCELERATOR.max_memory_reserved),
        "memory_cached": of(ACCELERATOR.memory_reserved),
        "max_memory_cached": of(ACCELERATOR.max_memory_reserved),
        "reset_peak_memory_stats": reset,
        "reset_max_memory_allocated": reset,
        "reset_max_memory_cached": reset,
        "reset_accumulated_memory_stats": of(ACCELERATOR.reset_accumulated_memory_stats),
        "mem_get_info": of(ACCELERATOR.get_memory_info),
        "empty_cache": ACCELERATOR.empty_cache,
    }


def _generators(native: Any, devices: int) -> dict[str, Any]:
    generators = tuple(native.default_generator(index) for index in range(devices))

    def generator(device: Any = None) -> torch.Generator:
        index = device if isinstance(device, int) else torch.device(device).index if device is not None else None
        return generators[native.current_device() if index is None else index]

    def manual_seed_all(seed: int) -> None:
        for each in generators:
            each.manual_seed(int(seed))

    def set_rng_state_all(states: Iterable[torch.Tensor]) -> None:
        for each, state in zip(generators, states, strict=True):
            each.set_state(state)

    return {
        "default_generators": generators,
        "manual_seed": lambda seed: generator().manual_seed(int(seed)),
        "manual_seed_all": manual_seed_all,
        "seed": lambda: generator().seed(),
        "initial_seed": lambda: generator().initial_seed(),
        "get_rng_state": lambda device=None: generator(device).get_state(),
        "set_rng_state": lambda state, device=None: generator(device).set_state(state) and None,
        "get_rng_state_all": lambda: [each.get_state() for each in generators],
        "set_rng_state_all": set_rng_state_all,
    }
