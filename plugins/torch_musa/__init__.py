"""Moore Threads GPUs: torch_musa, MCCL, and MTML (or mthreads-gmi) for what the driver knows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from core import hookimpl
from core.environment import told, usable_cores, variables
from core.errors import DeviceError
from core.notices import notify
from core.software import KnownVersions, installed_version, numbers
from plugins.torch_musa import telemetry
from plugins.torch_musa.chips import CHIPS, match
from schemas.chip import ChipSpec, Device, ProbeResult, TelemetryReading

if TYPE_CHECKING:
    import torch

    from schemas.plan import Plan

ACCELMARK_HOOK_API = 1

TORCH_MUSA = KnownVersions(
    software="torch_musa",
    lowest="2.7",
    needed_for="is the first for torch 2.6 or later",
    working=("2.7", "2.9", "2.11"),
)
VARIABLES = (
    "MUSA_VISIBLE_DEVICES", "PYTORCH_MUSA_ALLOC_CONF", "TORCH_USE_MUSA_DOUBLE_CAST", "MUSA_KERNEL_TIMEOUT",
    "MUSA_EXECUTION_TIMEOUT", "MUSA_BLOCK_SCHEDULE_MODE", "MUSA_EXECUTE_COUNT", "MCCL_ALGOS", "MCCL_PROTOS",
    "MCCL_BUFFSIZE", "MCCL_DEBUG", "MCCL_IB_GID_INDEX",
)  # fmt: skip
"""Recorded where they are set."""
FLASH_HEAD_SIZE = 128
"""The largest head that muDNN's flash attention takes for every card, as torch_musa checks it."""


@hookimpl
def chips() -> tuple[ChipSpec, ...]:
    """See ``plugins.torch_musa.chips``."""
    return CHIPS


@hookimpl
def probe() -> list[ProbeResult]:
    """The cards that MUSA_VISIBLE_DEVICES leaves visible, by type."""
    names = Counter(telemetry.device_names())
    return [ProbeResult(chip=match(name), device_name=name, count=count) for name, count in names.items()]


@hookimpl
def launch_env(plan: Plan) -> dict[str, str]:
    """Threads for the host's part of the work, an allocator that does not fragment, and time for long kernels.

    The driver ends a kernel that runs longer than MUSA_KERNEL_TIMEOUT (ms); FlagPerf sets an hour on these cards.
    """
    return {
        "OMP_NUM_THREADS": str(max(1, usable_cores() // plan.topology.chips_per_node)),
        "PYTORCH_MUSA_ALLOC_CONF": "expandable_segments:True",
        "MUSA_KERNEL_TIMEOUT": "3600000",
    }


@hookimpl
def init_device(plan: Plan, local_rank: int) -> Device:
    """Take the card of this rank and pin TF32; DeviceError unless it is the chip that the plan names."""
    import torch

    _import_torch_musa()
    musa: Any = torch.get_device_module("musa")
    _require_card(musa, local_rank)
    musa.set_device(local_rank)
    name = str(musa.get_device_name(local_rank))
    if match(name) != plan.chip.name:
        raise DeviceError(
            f"the plan is for {plan.chip.name}, but musa:{local_rank} is {name!r} (chip {match(name)})",
            "choose a config of the chip that this machine holds",
        )
    if plan.compute_precision == "bf16" and not musa.is_bf16_supported():
        raise DeviceError(
            f"{name} computes no bf16, says torch_musa", "use precision fp16, or amp with autocast_dtype fp16"
        )
    _tell_of_slow_attention(plan)
    return Device(
        torch_device=f"musa:{local_rank}",
        index=local_rank,
        name=name,
        collective_backend="mccl",
        math_mode=_pin_math_mode(tf32=plan.hyper_parameters.precision == "tf32"),
    )


def _import_torch_musa() -> None:
    """``import torch`` loads it by its entry point; here for what that says when it cannot."""
    import torch

    version = installed_version("torch_musa")
    if version is not None:
        TORCH_MUSA.check(version)
        if numbers(version)[:2] != numbers(torch.__version__)[:2]:
            raise DeviceError(
                f"torch_musa {version} is not for torch {torch.__version__}",
                "install the two of one series: torch_musa 2.7 goes with torch 2.7",
            )
    try:
        import torch_musa  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"torch_musa does not load: {error}",
            "install Moore Threads' torch_musa for this torch, and put the MUSA toolkit on LD_LIBRARY_PATH",
        ) from error


def _require_card(musa: Any, local_rank: int) -> None:
    count = musa.device_count() if musa.is_available() else 0
    if local_rank >= count:
        raise DeviceError(
            f"local rank {local_rank} has no card: torch_musa sees {count}",
            "check mthreads-gmi, start no more workers a node than cards, or widen MUSA_VISIBLE_DEVICES",
        )


def _tell_of_slow_attention(plan: Plan) -> None:
    """Without a flash kernel, torch's attention keeps all scores in memory: a reader must know why it is slow."""
    half = plan.compute_precision not in ("fp32", "tf32")
    if plan.hyper_parameters.attention == "sdpa" and not (half and plan.model.head_size <= FLASH_HEAD_SIZE):
        notify(
            f"muDNN has no flash attention for {plan.compute_precision} and heads of {plan.model.head_size}: "
            "attention runs unfused"
        )


def _pin_math_mode(*, tf32: bool) -> dict[str, str]:
    """TF32 for fp32 products under ``tf32`` alone. torch_musa turns it on when it is imported.

    torch's own switch is pinned, too: torch.compile reads it for the kernels that it writes.
    """
    import torch

    mudnn: Any = torch.backends.mudnn  # type: ignore[attr-defined]  # torch_musa adds it
    mudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if bool(mudnn.allow_tf32) is not tf32:
        raise DeviceError(
            f"torch.backends.mudnn.allow_tf32 stays {mudnn.allow_tf32}", "use a torch_musa that can switch TF32"
        )
    return {
        "mudnn_allow_tf32": str(mudnn.allow_tf32),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


@hookimpl
def prepare_engine(plan: Plan, device: Device) -> None:
    """Give DeepSpeed an accelerator for the device, since it has none; let that stand in for CUDA in Megatron."""
    if plan.engine == "deepspeed":
        from deepspeed.accelerator import set_accelerator

        from core.engines.deepspeed_accelerator import CudaShapedAccelerator

        set_accelerator(CudaShapedAccelerator(device, "MUSA_VISIBLE_DEVICES"))
    if plan.engine == "megatron":
        import torch

        from core.engines.megatron.facade import install

        install(torch.device(device.torch_device))


@hookimpl
def optimizer_wrap(optimizer: torch.optim.Optimizer, plan: Plan) -> torch.optim.Optimizer | None:
    """torch_musa's fused AdamW in place of torch's; other optimizers, and states that lie on the host, stay."""
    import torch

    from core.optimizers import adamw_groups

    if type(optimizer) is not torch.optim.AdamW or plan.hyper_parameters.offload != "none":
        return None
    try:
        from torch_musa.optim import FusedAdamW
    except ImportError as error:
        notify(f"torch_musa's fused AdamW does not load ({error}): torch's AdamW steps")
        return None
    fused: torch.optim.Optimizer = FusedAdamW(adamw_groups(optimizer))
    return fused


@hookimpl
def collect_telemetry(device: Device) -> TelemetryReading | None:
    """One sample by MTML or mthreads-gmi; None without both."""
    return telemetry.sample(device.index)


@hookimpl
def describe_environment(device: Device) -> dict[str, str]:
    """Driver, toolkit and libraries as torch_musa has them, and its variables."""
    import torch

    musa: Any = torch.get_device_module("musa")
    mudnn: Any = torch.backends.mudnn  # type: ignore[attr-defined]  # torch_musa adds it
    versions: dict[str, Any] = {
        "torch_musa": lambda: installed_version("torch_musa"),
        "musa": lambda: torch.version.musa,  # type: ignore[attr-defined]
        "mudnn": mudnn.version,
        "mccl": lambda: ".".join(map(str, musa.mccl.version())),
        "musa_capability": lambda: ".".join(map(str, musa.get_device_capability(device.index))),
        "mthreads_driver": telemetry.driver_version,
    }
    return {"gpu": device.name} | told(versions) | variables(VARIABLES)
