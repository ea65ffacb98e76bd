"""MetaX GPUs: a torch whose CUDA is MACA, MCCL under the name nccl, MXSML (or mx-smi) for what the driver knows.

The device type is ``cuda``, so the CUDA paths of torch, DeepSpeed and Megatron serve as they are.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from core import hookimpl
from core.environment import told, usable_cores, variables
from core.errors import DeviceError
from core.software import KnownVersions
from plugins.metax import telemetry
from plugins.metax.chips import CHIPS, match
from schemas.chip import ChipSpec, Device, ProbeResult, TelemetryReading

if TYPE_CHECKING:
    from schemas.plan import Plan

ACCELMARK_HOOK_API = 1

MACA_TORCH = KnownVersions(
    software="MetaX's torch",
    lowest="2.6",
    needed_for="has the FSDP2 that AccelMark calls",
    working=("2.6", "2.8"),
)
TF32_SWITCH = "METAX_USE_TF32"
VARIABLES = (
    "MACA_VISIBLE_DEVICES", TF32_SWITCH, "MACA_PATH", "MACA_MPS_MODE", "MACA_SMALL_PAGESIZE_ENABLE",
    "CUDA_DEVICE_MAX_CONNECTIONS", "MCCL_DEBUG", "MCCL_IB_HCA", "MCCL_IB_GID_INDEX", "MCCL_ENABLE_VSWITCH",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_ALLOW_CUDA_CUDNN_TF32",
)  # fmt: skip
"""Recorded where they are set."""


@hookimpl
def chips() -> tuple[ChipSpec, ...]:
    """See ``plugins.metax.chips``."""
    return CHIPS


@hookimpl
def probe() -> list[ProbeResult]:
    """The cards that MACA_VISIBLE_DEVICES leaves visible, by type; no NVIDIA GPUs, though they look so."""
    names = Counter(telemetry.device_names())
    return [
        ProbeResult(chip=match(name), device_name=name, count=count, replaces=("nvidia",))
        for name, count in names.items()
    ]


@hookimpl
def launch_env(plan: Plan) -> dict[str, str]:
    """Threads for the host's part of the work, and the switch of MetaX's libraries for TF32.

    Megatron starts a collective before the product that is to hide it, which only one queue to the device keeps in
    order: MetaX's own Megatron scripts set the same.
    """
    queues = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if plan.engine == "megatron" else {}
    return queues | {
        "OMP_NUM_THREADS": str(max(1, usable_cores() // plan.topology.chips_per_node)),
        TF32_SWITCH: _tf32_switch(plan),
    }


def _tf32_switch(plan: Plan) -> str:
    return "1" if plan.hyper_parameters.precision == "tf32" else "0"


@hookimpl
def init_device(plan: Plan, local_rank: int) -> Device:
    """Take the card of this rank and pin TF32; DeviceError unless it is the chip that the plan names."""
    _pin_tf32_switch(plan)
    import torch

    _require_maca(local_rank)
    torch.cuda.set_device(local_rank)
    name = torch.cuda.get_device_name(local_rank)
    if match(name) != plan.chip.name:
        raise DeviceError(
            f"the plan is for {plan.chip.name}, but cuda:{local_rank} is {name!r} (chip {match(name)})",
            "choose a config of the chip that this machine holds",
        )
    return Device(
        torch_device=f"cuda:{local_rank}",
        index=local_rank,
        name=name,
        collective_backend="nccl",
        math_mode=_pin_math_mode(tf32=plan.hyper_parameters.precision == "tf32"),
    )


def _pin_tf32_switch(plan: Plan) -> None:
    """MetaX's libraries read it when they are first used; under another launcher nobody has set it yet."""
    wanted = _tf32_switch(plan)
    if os.environ.setdefault(TF32_SWITCH, wanted) != wanted:
        raise DeviceError(
            f"{TF32_SWITCH}={os.environ[TF32_SWITCH]} goes against precision {plan.hyper_parameters.precision}",
            f"unset it: AccelMark sets {TF32_SWITCH}={wanted} for this plan",
        )


def maca_version() -> str | None:
    """The MACA that torch was built for (``3.5.3.9``); None when this torch is not MetaX's."""
    import torch

    stated = getattr(torch.version, "maca", None)
    if stated is not None:
        return str(stated)
    marked = torch.__version__.partition("+metax")
    return marked[2] if marked[1] else None


def _require_maca(local_rank: int) -> None:
    import torch

    if maca_version() is None:
        raise DeviceError(
            f"torch {torch.__version__} is not MetaX's build", "install torch with +metax in its version, by MetaX"
        )
    MACA_TORCH.check(torch.__version__)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= count:
        raise DeviceError(
            f"local rank {local_rank} has no card: torch sees {count}",
            "check mx-smi, start no more workers a node than cards, or widen MACA_VISIBLE_DEVICES",
        )


def _pin_math_mode(*, tf32: bool) -> dict[str, str]:
    """TF32 for fp32 products under ``tf32`` alone, by torch's switches beside that of MetaX's libraries."""
    import torch

    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    if torch.backends.cuda.matmul.allow_tf32 is not tf32:
        raise DeviceError(
            f"torch.backends.cuda.matmul.allow_tf32 stays {not tf32}", "unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
        )
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": str(torch.backends.cudnn.allow_tf32),
        TF32_SWITCH: os.environ[TF32_SWITCH],
    }


@hookimpl
def prepare_engine(plan: Plan) -> None:
    """Keep DeepSpeed from looking for other vendors; Megatron's CUDA is already MetaX's."""
    if plan.engine == "deepspeed":
        os.environ["DS_ACCELERATOR"] = "cuda"


@hookimpl
def collect_telemetry(device: Device) -> TelemetryReading | None:
    """One sample by MXSML or mx-smi; None without both."""
    return telemetry.sample(device.index)


@hookimpl
def describe_environment(device: Device) -> dict[str, str]:
    """MACA as torch has it and as the system does, the driver, and MetaX's variables."""
    import torch

    versions: dict[str, Any] = {
        "maca": maca_version,
        "mccl": lambda: ".".join(str(part) for part in torch.cuda.nccl.version()),  # type: ignore[no-untyped-call]
    }
    return {"gpu": device.name} | told(versions) | telemetry.smi_versions() | variables(VARIABLES)
