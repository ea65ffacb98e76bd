"""NVIDIA GPUs: torch's own CUDA support, NCCL, and NVML for what the driver knows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from core import hookimpl
from core.environment import usable_cores
from core.errors import DeviceError, UsageError
from plugins.nvidia import telemetry
from plugins.nvidia.chips import CHIPS, HOPPER, match
from schemas.chip import ChipSpec, Device, ProbeResult, TelemetryReading

if TYPE_CHECKING:
    import torch
    from torch import nn

    from schemas.case import Case
    from schemas.hyperparameters import HyperParameters, OverrideValue, Precision
    from schemas.model import DecoderSpec
    from schemas.plan import Plan
    from schemas.units import Topology

ACCELMARK_HOOK_API = 1
LARGEST_HEAD = 128
"""Channels of a head in cuDNN's fused attention, as its frontend checks them."""


@hookimpl
def chips() -> tuple[ChipSpec, ...]:
    """See ``plugins.nvidia.chips``."""
    return CHIPS


@hookimpl
def probe() -> list[ProbeResult]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves visible, by type; none where NVML finds no driver."""
    lib = telemetry.nvml()
    names = Counter(telemetry.device_names(lib)) if lib is not None else {}
    return [ProbeResult(chip=match(name), device_name=name, count=count) for name, count in names.items()]


@hookimpl
def tune(case: Case, topology: Topology, chosen: Mapping[str, OverrideValue]) -> dict[str, OverrideValue]:
    """A fused kernel where a bias keeps SDPA from its own (ALiBi), and copies between GPUs of a node.

    cuDNN's where it was measured, on Hopper: on an H200 two sequences of 2048 and 40 heads take 765 µs forward and
    backward, and 1,057 by FlexAttention.
    """
    tuned: dict[str, OverrideValue] = {}
    if case.model.position == "alibi":
        hp = case.hyper_parameters
        takes = _no_cudnn_alibi(case.model, hp) is None and hp.packing == "concat"
        tuned["attention"] = "vendor" if topology.chip in HOPPER and takes else "flex"
    if topology.nodes == 1 and topology.chips_per_node > 1:
        tuned["collectives"] = "peer_copies"
    return tuned


@hookimpl
def launch_env(plan: Plan) -> dict[str, str]:
    """Threads for the host's part of the work, and an allocator that does not fragment.

    On an H200 (torch 2.11), batches of varied length reserved 12.1 GiB with growing segments and 22.8 GiB without,
    11.7 GiB of it allocated, at the same speed. torch has renamed the variable and still prefers the old name, so
    nothing is added where a user has set that. NCCL's defaults need no help. Megatron starts a collective before
    the product that is to hide it, which only one queue to the device keeps in order. Copies between peers hold up
    the queue that they wait in, which therefore must be no other stream's.
    """
    added = {"OMP_NUM_THREADS": str(max(1, usable_cores() // plan.topology.chips_per_node))}
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        added["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if plan.engine == "megatron":
        added["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if plan.hyper_parameters.collectives == "peer_copies":
        added["CUDA_DEVICE_MAX_CONNECTIONS"] = "32"
    return added


@hookimpl
def init_device(plan: Plan, local_rank: int) -> Device:
    """Take the GPU of this rank and pin TF32; DeviceError unless it is the chip that the plan names."""
    # NVML numbers GPUs by bus; CUDA has to do the same for both to mean one device by one number.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    import torch

    _require_cuda(local_rank)
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
        math_mode=_pin_math_mode(plan.hyper_parameters.precision),
    )


def _require_cuda(local_rank: int) -> None:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        raise DeviceError(
            f"torch {torch.__version__} sees no CUDA device",
            "check nvidia-smi and CUDA_VISIBLE_DEVICES" if built else "install a CUDA build of torch",
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise DeviceError(
            f"local rank {local_rank} has no GPU: {count} visible",
            "start no more workers a node than GPUs, or widen CUDA_VISIBLE_DEVICES",
        )


def _pin_math_mode(precision: Precision) -> dict[str, str]:
    """TF32 for fp32 matrix products under ``tf32`` alone: what stays fp32 in other precisions is fp32.

    By torch's older switches: with ``fp32_precision`` set instead, torch.compile up to 2.13 fails on reading them
    (pytorch issue 166387). Reductions in bf16 and fp16 within a matrix product are torch's default, which the
    peaks assume.
    """
    import torch

    tf32 = precision == "tf32"
    if tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        raise DeviceError(
            "NVIDIA_TF32_OVERRIDE=0 turns off the TF32 that the plan's precision asks for",
            "unset it, or plan precision fp32",
        )
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    matmul = torch.backends.cuda.matmul
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": str(torch.backends.cudnn.allow_tf32),
        "bf16_reduced_precision_reduction": str(matmul.allow_bf16_reduced_precision_reduction),
        "fp16_reduced_precision_reduction": str(matmul.allow_fp16_reduced_precision_reduction),
    }


@hookimpl
def prepare_engine(plan: Plan) -> None:
    """Offer the memory that GPUs of a node share, and see that cuDNN can attend as is planned."""
    if plan.hyper_parameters.attention == "vendor":
        _require_cudnn_alibi(plan)
    if plan.hyper_parameters.collectives == "peer_copies":
        from core.engines.peer_copies import offer_windows
        from plugins.nvidia.symmetric_memory import SymmetricWindow

        offer_windows("cuda", SymmetricWindow)


@hookimpl(wrapper=True)
def build_model(plan: Plan) -> Generator[None, nn.Module, nn.Module]:
    """Attention ``vendor`` is cuDNN's with ALiBi."""
    model = yield
    if plan.hyper_parameters.attention == "vendor":
        import torch

        from core.models.decoder import Decoder
        from plugins.nvidia import cudnn_attention

        assert isinstance(model, Decoder)  # plans of an engine with models of its own are refused
        model.use_attention(cudnn_attention.attend, torch.ops.accelmark.cudnn_alibi.default)
    return model


def _require_cudnn_alibi(plan: Plan) -> None:
    reason = _no_cudnn_alibi(plan.model, plan.hyper_parameters)
    if reason is not None:
        nearest = "flex" if plan.model.position == "alibi" else "sdpa"
        raise UsageError(f"cuDNN's attention with ALiBi {reason}", f"use attention {nearest!r}")
    if find_spec("cudnn") is None:
        raise DeviceError(
            "attention 'vendor' is cuDNN's, and its frontend is not installed",
            "pip install nvidia-cudnn-frontend, or use attention 'flex'",
        )


def _no_cudnn_alibi(model: DecoderSpec, hp: HyperParameters) -> str | None:
    """Why cuDNN would refuse it; None where it does not."""
    if model.position != "alibi":
        return "is not for a model without it"
    if hp.precision in ("fp32", "tf32"):
        return f"is for 16 bits, not {hp.precision}"
    if model.head_size > LARGEST_HEAD or model.head_size % 8:
        return f"takes heads of up to {LARGEST_HEAD} channels, a multiple of 8, not {model.head_size}"
    return None


@hookimpl
def optimizer_wrap(optimizer: torch.optim.Optimizer, plan: Plan) -> torch.optim.Optimizer | None:
    """Of engine torch, core's compiled AdamW in the place of torch's fused one, where the plan compiles.

    Torch's kernel writes back the gradient that it divides: 32 bytes a parameter, at 3.0 TB/s on an H200 (torch
    2.11), 36 of the 936 ms of a step of Llama2-7B on two. Compiled it is 28 bytes, and takes 24 ms. Under a loss
    scaler torch's stays: it skips what overflows.
    """
    import torch

    from core.optimizers import CompiledAdamW, adamw_groups

    hp = plan.hyper_parameters
    compiles = plan.engine == "torch" and hp.compile and hp.offload == "none" and not hp.scales_loss
    measured = plan.lora is None and plan.vision is None  # adapters are many small tensors: a kernel for each
    if type(optimizer) is not torch.optim.AdamW or not (compiles and measured):
        return None
    return CompiledAdamW(adamw_groups(optimizer), {})


@hookimpl
def collect_telemetry(device: Device) -> TelemetryReading | None:
    """One sample by NVML; None without it."""
    return telemetry.sample(device.index)


@hookimpl
def describe_environment(device: Device) -> dict[str, str]:
    """CUDA's libraries as torch loads them, and the GPU as NVML sees it."""
    import torch

    versions = {
        "gpu": device.name,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),  # type: ignore[no-untyped-call]
    }
    with suppress(PackageNotFoundError):
        versions["cudnn_frontend"] = version("nvidia-cudnn-frontend")
    return versions | telemetry.describe(device.index)
