"""Cambricon MLUs: torch_mlu, CNCL, and cnmon for what the driver knows."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from core import hookimpl
from core.environment import told, usable_cores, variables
from core.errors import DeviceError
from core.notices import notify, watch
from core.software import KnownVersions, installed_version, numbers
from plugins.cambricon import telemetry
from plugins.cambricon.chips import CHIPS, fits, match
from schemas.chip import ChipSpec, Device, ProbeResult, TelemetryReading

if TYPE_CHECKING:
    import torch

    from schemas.plan import Plan

ACCELMARK_HOOK_API = 1

TORCH_MLU = KnownVersions(
    software="torch_mlu",
    lowest="1.25",
    needed_for="is the first for torch 2.6 or later",
    working=("1.29", "1.30", "1.33"),
)
FELL_BACK = "will fall back to run on the CPU"
"""What torch_mlu says, once an operator, when it computes one on the host: nobody would know why a run is slow."""
VARIABLES = (
    "MLU_VISIBLE_DEVICES", "ENABLE_FALLBACK_TO_CPU", "ENABLE_MLU_FAIL_FALLBACK", "PYTORCH_MLU_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CNMATMUL_OVERRIDE", "CNCL_MLULINK_OVER_ROCE_DISABLE", "CNCL_MLULINK_CROSS_HOSTS_ENABLE",
    "CNCL_MLU_DIRECT_LEVEL", "CNCL_IB_RELAXED_ORDERING_ENABLE",
)  # fmt: skip
"""Recorded where they are set."""


@hookimpl
def chips() -> tuple[ChipSpec, ...]:
    """See ``plugins.cambricon.chips``."""
    return CHIPS


@hookimpl
def probe() -> list[ProbeResult]:
    """The devices that MLU_VISIBLE_DEVICES leaves visible, by type; all of them are also the chip ``MLU``."""
    names = telemetry.device_names()
    found = [
        ProbeResult(chip=match(name), device_name=name, count=count) for name, count in Counter(names).items()
    ]
    if not names:
        return found
    return [*found, ProbeResult(chip="MLU", device_name="any Cambricon MLU", count=len(names))]


@hookimpl
def launch_env(plan: Plan) -> dict[str, str]:
    """Threads for the host's part of the work. CNCL's defaults need no help that could be verified."""
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // plan.topology.chips_per_node))}


@hookimpl
def init_device(plan: Plan, local_rank: int) -> Device:
    """Take this rank's MLU, pin TF32, and have computing on the CPU told; DeviceError unless the chip fits."""
    import torch

    _import_torch_mlu()
    watch(FELL_BACK)
    mlu: Any = torch.get_device_module("mlu")
    _require_device(mlu, local_rank)
    mlu.set_device(local_rank)
    name = str(mlu.get_device_name(local_rank))
    if not fits(plan.chip.name, name):
        raise DeviceError(
            f"the plan is for {plan.chip.name}, but mlu:{local_rank} is {name!r} (chip {match(name)})",
            "choose a config of the chip that this machine holds",
        )
    if plan.compute_precision == "bf16" and not mlu.is_bf16_supported():
        raise DeviceError(
            f"{name} computes no bf16, says torch_mlu", "use precision fp16, or amp with autocast_dtype fp16"
        )
    return Device(
        torch_device=f"mlu:{local_rank}",
        index=local_rank,
        name=name,
        collective_backend="cncl",
        math_mode=_pin_math_mode(tf32=plan.hyper_parameters.precision == "tf32"),
    )


def _import_torch_mlu() -> None:
    """Nothing else imports it. Its version names the torch that it was built for: ``1.29.2+torch2.7.1``."""
    import torch

    version = installed_version("torch_mlu", "torch-mlu")
    if version is not None:
        TORCH_MLU.check(version)
        built_for = version.partition("+torch")[2]
        if built_for and numbers(built_for)[:2] != numbers(torch.__version__)[:2]:
            raise DeviceError(
                f"torch_mlu {version} is not for torch {torch.__version__}", f"install torch {built_for} beside it"
            )
    try:
        import torch_mlu  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"torch_mlu does not load: {error}",
            "install Cambricon's torch_mlu for this torch; set NEUWARE_HOME and LD_LIBRARY_PATH for its toolkit",
        ) from error


def _require_device(mlu: Any, local_rank: int) -> None:
    count = mlu.device_count() if mlu.is_available() else 0
    if local_rank >= count:
        raise DeviceError(
            f"local rank {local_rank} has no MLU: torch_mlu sees {count}",
            "check cnmon, start no more workers a node than devices, or widen MLU_VISIBLE_DEVICES",
        )


def _pin_math_mode(*, tf32: bool) -> dict[str, str]:
    """TF32 for fp32 products under ``tf32`` alone.

    torch_mlu has three switches: matrix products, convolutions (on when it is imported), and what is neither.
    torch's own comes first, since torch_mlu's for matrix products can hang on it; torch.compile reads it, too.
    """
    import torch

    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    backends: Any = torch.backends
    switches = {"mlu_matmul": backends.mlu.matmul, "cnnl": backends.cnnl, "mlu_custom": backends.mlu.custom}
    mode = {"float32_matmul_precision": torch.get_float32_matmul_precision()}
    for name, switch in switches.items():
        switch.allow_tf32 = tf32
        mode[f"{name}_allow_tf32"] = str(switch.allow_tf32)
        if bool(switch.allow_tf32) is not tf32:
            raise DeviceError(
                f"torch_mlu's switch {name}.allow_tf32 stays {switch.allow_tf32}",
                "unset TORCH_ALLOW_TF32_CNMATMUL_OVERRIDE",
            )
    return mode


@hookimpl
def prepare_engine(plan: Plan, device: Device) -> None:
    """Point DeepSpeed at its own accelerator for MLUs; let the device stand in for CUDA in Megatron."""
    if plan.engine == "deepspeed":
        os.environ["DS_ACCELERATOR"] = "mlu"
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.mlu_accelerator import MLU_Accelerator

        set_accelerator(MLU_Accelerator())
    if plan.engine == "megatron":
        import torch

        from core.engines.megatron.facade import install

        install(torch.device(device.torch_device))


@hookimpl
def optimizer_wrap(optimizer: torch.optim.Optimizer, plan: Plan) -> torch.optim.Optimizer | None:
    """torch_mlu's fused AdamW in place of torch's; other optimizers, and states that lie on the host, stay."""
    import torch

    from plugins.cambricon.optimizer import FusedAdamW, has_kernel

    if type(optimizer) is not torch.optim.AdamW or plan.hyper_parameters.offload != "none":
        return None
    if not has_kernel():
        notify("this torch_mlu has no fused AdamW: torch's AdamW steps")
        return None
    return FusedAdamW(optimizer.param_groups)


@hookimpl
def collect_telemetry(device: Device) -> TelemetryReading | None:
    """One sample by cnmon; None without it."""
    return telemetry.sample(device.index)


@hookimpl
def describe_environment(device: Device) -> dict[str, str]:
    """Driver and libraries as torch_mlu has them, and its variables."""
    import torch

    mlu: Any = torch.get_device_module("mlu")
    versions: dict[str, Any] = {
        "torch_mlu": lambda: installed_version("torch_mlu", "torch-mlu"),
        "cncl": lambda: ".".join(map(str, _cncl_version())),
        "mlu_capability": lambda: ".".join(map(str, mlu.get_device_capability(device.index))),
        "cambricon_driver": telemetry.driver_version,
    }
    return {"gpu": device.name} | told(versions) | variables(VARIABLES)


def _cncl_version() -> tuple[int, ...]:
    from torch_mlu.mlu import cncl

    version: tuple[int, ...] = cncl.version()
    return version
