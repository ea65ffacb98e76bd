"""Vendor plugins: found by entry point, each loaded behind a fence, called through one typed facade.

A plugin that does not load is *broken*: it is listed with its distribution and the reason, and hurts nobody
until it is selected. A vendor name that two distributions provide is refused until ``NAME@DIST`` chooses.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy
from pydantic import TypeAdapter, ValidationError

from core import HOOK_API_VERSION, HOOK_PROJECT, hookspecs
from core.emulation import is_emulated
from core.entry_points import distribution_of, entry_points
from core.errors import AccelMarkError, DeviceError, UsageError
from core.user_chips import overridden, user_chips
from schemas.base import explain
from schemas.case import Case, HardwareConfig
from schemas.chip import ChipSpec, Device, MemoryReading, ProbeResult, TelemetryReading
from schemas.hyperparameters import Overrides, OverrideValue

if TYPE_CHECKING:
    import torch

    from schemas.plan import Plan
    from schemas.units import Topology

GROUP = "accelmark.vendors"
LAUNCHER_HOOKS = ("chips", "probe", "hardware_configs", "tune", "launch_env")
"""Hooks that are asked before any worker is started."""


class Vendor:
    """One loaded vendor plugin; every hook as a typed method that returns validated values."""

    def __init__(
        self, name: str, distribution: str, module: ModuleType, *, defaults: object | None = None
    ) -> None:
        self.name = name
        self.distribution = distribution
        self.module = module
        self._manager = _manager_for(name, module, defaults)

    @functools.cached_property
    def chips(self) -> tuple[ChipSpec, ...]:
        """The vendor's chips, with the values of the user's own chip file; each must carry the vendor's name."""
        found: tuple[ChipSpec, ...] = self._ask("chips", tuple[ChipSpec, ...]) or ()
        if not found:
            raise DeviceError(f"vendor {self.name!r} lists no chips", "implement the hook `chips` in its plugin")
        for chip in found:
            if chip.vendor != self.name:
                raise DeviceError(
                    f"vendor {self.name!r}: chip {chip.name!r} says vendor {chip.vendor!r}",
                    "correct `vendor` in the plugin's chips",
                )
        return overridden(self.name, found)

    def chip(self, name: str) -> ChipSpec:
        """The chip called ``name``; UsageError lists the known ones."""
        for chip in self.chips:
            if chip.name == name:
                return chip
        known = ", ".join(chip.name for chip in self.chips)
        raise UsageError(f"vendor {self.name!r} knows no chip {name!r}", f"use one of: {known}")

    def implements(self, hook: str) -> bool:
        """Whether the plugin itself has an implementation of ``hook``, besides what core does by default."""
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return any(implementation.plugin is self.module for implementation in implementations)

    def probe(self) -> tuple[ProbeResult, ...]:
        """Chips on this machine; empty when there are none."""
        return self._ask("probe", tuple[ProbeResult, ...]) or ()

    def hardware_configs(self, case: Case) -> tuple[HardwareConfig, ...]:
        """Configs this vendor adds to ``case``."""
        return self._ask("hardware_configs", tuple[HardwareConfig, ...], case=case) or ()

    def tune(self, case: Case, topology: Topology, chosen: Mapping[str, OverrideValue]) -> Overrides:
        """What the vendor sets otherwise in a tuned run."""
        answer: Overrides | None = self._ask("tune", Overrides, case=case, topology=topology, chosen=chosen)
        return answer or {}

    def launch_env(self, plan: Plan) -> dict[str, str]:
        """Environment to add for the workers."""
        return self._ask("launch_env", dict[str, str], plan=plan) or {}

    def init_device(self, plan: Plan, local_rank: int) -> Device:
        """Set up the device of this worker; one whose torch module says ``__emulated__`` is marked as such."""
        device: Device | None = self._ask("init_device", Device, plan=plan, local_rank=local_rank)
        if device is None:
            raise DeviceError(
                f"vendor {self.name!r} sets up no device", "implement the hook `init_device` in its plugin"
            )
        return device.model_copy(update={"emulated": device.emulated or is_emulated(device.type)})

    def prepare_engine(self, plan: Plan, device: Device) -> None:
        """Let the vendor prepare the engine's framework."""
        self._manager.hook.prepare_engine(plan=plan, device=device)

    def build_model(self, case: Case, plan: Plan, device: Device, stage: int) -> torch.nn.Module:
        """The model of one pipeline stage, without values."""
        model: torch.nn.Module = self._manager.hook.build_model(case=case, plan=plan, device=device, stage=stage)
        return model

    def optimizer_wrap(
        self, optimizer: torch.optim.Optimizer, model: torch.nn.Module, plan: Plan, device: Device
    ) -> torch.optim.Optimizer:
        """The optimizer that will step."""
        wrapped = self._manager.hook.optimizer_wrap(optimizer=optimizer, model=model, plan=plan, device=device)
        return optimizer if wrapped is None else wrapped

    def collect_memory(self, device: Device) -> MemoryReading:
        """Memory peaks since the last reset."""
        reading: MemoryReading = self._ask("collect_memory", MemoryReading, device=device)
        return reading

    def collect_telemetry(self, device: Device) -> TelemetryReading | None:
        """One telemetry sample, or None."""
        reading: TelemetryReading | None = self._ask("collect_telemetry", TelemetryReading, device=device)
        return reading

    def describe_environment(self, device: Device) -> dict[str, str]:
        """Versions the vendor adds to the record's environment."""
        return self._ask("describe_environment", dict[str, str], device=device) or {}

    def _ask(self, hook: str, expected: Any, **arguments: Any) -> Any:
        """Call a hook and hold its answer against the type that the hook promises."""
        try:
            answer = getattr(self._manager.hook, hook)(**arguments)
        except Exception as error:
            # In a worker the error's own type tells how the run ended, and its traceback goes to the rank's log.
            if hook not in LAUNCHER_HOOKS or isinstance(error, AccelMarkError):
                raise
            raise DeviceError(
                f"vendor {self.name!r} ({self.distribution}), hook {hook}: {one_line(error)}",
                f"repair the plugin's `{hook}`; --debug shows where it fails",
            ) from error
        if answer is None or answer == []:
            return None
        try:
            return TypeAdapter(expected).validate_python(answer)
        except ValidationError as error:
            problem = explain(error, f"vendor {self.name!r} ({self.distribution}), hook {hook}")
            raise DeviceError(problem, f"correct what the plugin's `{hook}` returns") from error


@dataclass(frozen=True)
class Found:
    """A vendor as it was found: loaded, or broken with the reason."""

    name: str
    distribution: str
    vendor: Vendor | None
    reason: str | None

    @property
    def status(self) -> str:
        """``ok`` or ``broken``."""
        return "ok" if self.vendor else "broken"


def _manager_for(name: str, module: ModuleType, defaults: object | None) -> pluggy.PluginManager:
    """A plugin manager that holds one vendor, and core's fallbacks where the worker needs them."""
    version = getattr(module, "ACCELMARK_HOOK_API", None)
    if version != HOOK_API_VERSION:
        raise DeviceError(
            f"written for hook API {version}, this core speaks {HOOK_API_VERSION}",
            f"set ACCELMARK_HOOK_API = {HOOK_API_VERSION} once the plugin follows that version",
        )
    manager = pluggy.PluginManager(HOOK_PROJECT)
    manager.add_hookspecs(hookspecs)
    if defaults is not None:
        manager.register(defaults, "core defaults")
    manager.register(module, name)
    manager.check_pending()
    return manager


def _load(entry: EntryPoint, defaults: object | None = None) -> Vendor:
    return Vendor(entry.name, distribution_of(entry), entry.load(), defaults=defaults)


def one_line(error: BaseException) -> str:
    """What an error says, for a list."""
    text = error.what if isinstance(error, AccelMarkError) else f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        text = explain(error, error.title)
    return " ".join(text.split())


@functools.cache
def discover() -> tuple[Found, ...]:
    """Every installed vendor, loaded behind an exception fence; broken ones with the reason. Sorted by name."""
    user_chips()  # what is wrong in the user's file is no plugin's fault
    found = []
    for entry in sorted(entry_points(GROUP), key=lambda e: (e.name, distribution_of(e))):
        try:
            vendor = _load(entry)
            vendor.chips  # noqa: B018 - a plugin whose chips are wrong is broken, too
            found.append(Found(entry.name, distribution_of(entry), vendor, None))
        except (Exception, SystemExit) as error:  # a plugin may do anything while it is imported
            found.append(Found(entry.name, distribution_of(entry), None, one_line(error)))
    return tuple(found)


def select(choice: str) -> Vendor:
    """The vendor ``NAME`` or ``NAME@DIST``.

    DeviceError when it is not installed, broken, or provided by two distributions with none chosen.
    """
    name, _, distribution = choice.partition("@")
    named = [f for f in discover() if f.name == name and distribution in ("", f.distribution)]
    if not named:
        known = ", ".join(sorted({f.name for f in discover()}))
        raise DeviceError(
            f"no plugin for vendor {choice!r} is installed", f"pip install its plugin; installed: {known}"
        )
    if len(named) > 1:
        options = " and ".join(f"{name}@{f.distribution}" for f in named)
        raise DeviceError(
            f"vendor {name!r} is provided by more than one distribution: {options}",
            f"choose one, e.g. --vendor {name}@{named[0].distribution}, or uninstall the other",
        )
    if named[0].vendor is None:
        raise DeviceError(
            f"plugin {name!r} of {named[0].distribution} is broken: {named[0].reason}",
            "repair or uninstall it; other vendors are not affected",
        )
    return named[0].vendor


def is_installed(name: str) -> bool:
    """Whether some distribution provides vendor ``name``, working or not."""
    return any(found.name == name for found in discover())


def load_alone(name: str, distribution: str, defaults: object | None = None) -> Vendor:
    """That vendor and no other, as workers do it: with core's default hooks, ``defaults``, beneath it."""
    for entry in entry_points(GROUP):
        if entry.name == name and distribution_of(entry) == distribution:
            return _load(entry, defaults)
    raise DeviceError(
        f"vendor {name!r} of {distribution} is planned but not installed here", "install it on every node"
    )


@dataclass(frozen=True)
class Present:
    """Chips of one vendor on this machine."""

    vendor: Vendor
    result: ProbeResult


def probe_all() -> tuple[tuple[Present, ...], Mapping[str, str]]:
    """What is on this machine, the most specific vendor for each device; and vendors whose probe failed, why."""
    present: list[Present] = []
    failed: dict[str, str] = {}
    for found in discover():
        if found.vendor is None:
            continue
        try:
            present += [Present(found.vendor, result) for result in found.vendor.probe()]
        except Exception as error:
            failed[found.name] = one_line(error)
    return _most_specific(present), failed


def _most_specific(present: Sequence[Present]) -> tuple[Present, ...]:
    replaced = {name for p in present for name in p.result.replaces}
    return tuple(p for p in present if p.vendor.name not in replaced)
