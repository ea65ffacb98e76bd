"""The hooks a vendor plugin implements. Only what vendors really differ in is a hook; the rest is core's.

Sides: the *launcher* imports no torch and asks every installed vendor; a *worker* is one rank of one run and
loads the selected vendor alone. A plugin implements what it needs and leaves out the rest: each docstring says
what core does then. Arguments are passed by name, so an implementation may take fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pluggy

from core import HOOK_PROJECT

if TYPE_CHECKING:
    import torch

    from schemas.case import Case, HardwareConfig
    from schemas.chip import ChipSpec, Device, MemoryReading, ProbeResult, TelemetryReading
    from schemas.hyperparameters import Overrides, OverrideValue
    from schemas.plan import Plan
    from schemas.units import Topology

hookspec = pluggy.HookspecMarker(HOOK_PROJECT)


@hookspec(firstresult=True)
def chips() -> Sequence[ChipSpec]:
    """The vendor's accelerator types: memory and dense peak per effective precision, each with its source.

    Launcher, before any plan exists; must not import torch. Required: a vendor without chips cannot be planned
    for. A peak nobody published is ``tflops=None``; MFU then prints ``/``. fp32 is the rate without matrix units
    in reduced precision, never the tf32 rate.

    Example::

        @hookimpl
        def chips():
            return [ChipSpec(name="X1", vendor="acme", memory_gb=64, memory_source="datasheet 1.2",
                             peaks=(Peak(precision="bf16", tflops=200, source="datasheet 1.2"),))]
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def probe() -> Sequence[ProbeResult] | None:
    """Which of the vendor's chips this machine holds.

    Launcher; must create no device context (use the management library, not the runtime) and not import torch.
    None or an empty list: no such chip here. A chip that presents itself as another vendor's names that vendor
    in ``replaces``, and the other vendor's result is dropped.

    Example::

        @hookimpl
        def probe():
            return [ProbeResult(chip="X1", device_name="ACME X1 64G", count=8)]
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def hardware_configs(case: Case) -> Sequence[HardwareConfig] | None:
    """Hardware configs that this vendor adds to ``case`` without editing it.

    Launcher; must not import torch. None: the case's own configs are all there are. A config with the topology
    of one that the case has is an error that names both.

    Example::

        @hookimpl
        def hardware_configs(case):
            if case.name == "llama2_7b":
                return [HardwareConfig(vendor="acme", topology="X1x1x8", engine="torch", runs=[Run(id="base")])]
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def tune(case: Case, topology: Topology, chosen: Mapping[str, OverrideValue]) -> Overrides | None:
    """What a tuned run sets otherwise on this vendor's chips: kernels that only they have, or lack.

    Launcher, when a run of a config with ``tuned=True`` is planned; must not import torch. ``case`` has the model
    and the hyper-parameters that would be planned. ``chosen`` is what core would set of them, and what the run and
    the command line ask for, which wins in any case. Core chooses anew what depends on the answer. None: core's
    choice stands.

    Example::

        @hookimpl
        def tune(case, topology, chosen):
            return {"compile": False} if topology.chip == "X1" else None
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def launch_env(plan: Plan) -> Mapping[str, str] | None:
    """Environment variables for the workers: visible devices, tunables of the collective library.

    Launcher, just before the workers start. None: nothing to add. Variables that the user has set win, and
    what was added is printed by ``--dry-run``.

    Example::

        @hookimpl
        def launch_env(plan):
            return {"ACCL_BUFFER_MIB": "64"}
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def init_device(plan: Plan, local_rank: int) -> Device:
    """Import the vendor's torch extension, select the device and pin the math mode.

    Worker, first of all; required. Every switch that changes the precision of matrix products is set from the
    plan's precision here, and reported in ``Device.math_mode``. Raise ``core.errors.DeviceError`` when the
    device or its software is not there.

    Example::

        @hookimpl
        def init_device(plan, local_rank):
            import torch_acme
            torch.acme.set_device(local_rank)
            return Device(torch_device=f"acme:{local_rank}", index=local_rank, name="X1",
                          collective_backend="accl", math_mode={})
    """
    raise NotImplementedError


@hookspec
def prepare_engine(plan: Plan, device: Device) -> None:
    """Make the engine's framework accept the device, before the framework's own modules are imported.

    Worker, after ``init_device``: ``deepspeed.accelerator.set_accelerator``, or for megatron-core, which assumes
    CUDA, ``core.engines.megatron.facade.install``. Not implemented: nothing is needed.

    Example::

        @hookimpl
        def prepare_engine(plan, device):
            if plan.engine == "deepspeed":
                from deepspeed.accelerator import set_accelerator
                set_accelerator(AcmeAccelerator())
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def build_model(case: Case, plan: Plan, device: Device, stage: int) -> torch.nn.Module:
    """Build the model of one pipeline stage (0 without pipeline parallelism), without values.

    Worker, called by the engine when it is ready for the model; the engine shards it and fills its parameters.
    Not implemented: core builds a ``core.models.decoder.Decoder`` on the meta device; under engine megatron a
    ``GPTModel`` on the device, for every stage that this rank holds (stages count from the first layer on).
    Replace it by one of your own, or decorate it with ``@hookimpl(wrapper=True)``.

    Example::

        @hookimpl(wrapper=True)
        def build_model(case, plan, device, stage):
            model = yield
            swap_attention(model)
            return model
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def optimizer_wrap(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, plan: Plan, device: Device
) -> torch.optim.Optimizer | None:
    """Swap in the vendor's fused optimizer, or adjust the one that core built.

    Worker, after the model is sharded and before the first step. Same parameters, groups and hyper-parameters
    in, same out: batch and schedule are the plan's. Its ``state`` is named as torch's AdamW names it (``exp_avg``,
    ``exp_avg_sq``, ``step``), as checkpoints are. None or not implemented: core's optimizer steps.

    Example::

        @hookimpl
        def optimizer_wrap(optimizer, model, plan, device):
            return torch_acme.optim.FusedAdamW(optimizer.param_groups, **optimizer.defaults)
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def collect_memory(device: Device) -> MemoryReading:
    """Peak allocated, reserved and device-wide memory since the last reset, and the capacity, in GiB.

    Worker, after the measured window. Not implemented: core reads the CUDA-shaped statistics of
    ``torch.get_device_module(device)`` (``core.memory.read_peaks``); what that lacks is None.

    Example::

        @hookimpl
        def collect_memory(device):
            return MemoryReading(peak_allocated_gib=..., peak_reserved_gib=..., peak_device_gib=None,
                                 capacity_gib=64.0)
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def collect_telemetry(device: Device) -> TelemetryReading | None:
    """One sample of power, temperature, utilisation and clocks.

    Worker, from a background thread about once a second; must not synchronise the device. Unknown is None,
    never 0. None or not implemented: the record has no telemetry.

    Example::

        @hookimpl
        def collect_telemetry(device):
            return TelemetryReading(power_w=acml.power_mw(device.index) / 1000)
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def describe_environment(device: Device) -> Mapping[str, str] | None:
    """Versions that matter for a reader of the record: driver, toolkit, collective library, kernels.

    Worker, once. None or not implemented: only what core finds itself (host, OS, Python, torch).

    Example::

        @hookimpl
        def describe_environment(device):
            return {"driver": "3.1.4", "accl": "2.0"}
    """
    raise NotImplementedError
