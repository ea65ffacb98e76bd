"""The reference chip: any CPU. AccelMark runs on it where there is no accelerator; it is never ranked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, get_args

from core import hookimpl
from core.environment import cpu_model, usable_cores
from schemas.chip import ChipSpec, Device, Peak, PeakPrecision, ProbeResult

if TYPE_CHECKING:
    from schemas.plan import Plan

ACCELMARK_HOOK_API = 1

_NO_PEAK = "CPUs differ in cores, clock and vector units; the reference chip stands for all of them"


@hookimpl
def chips() -> list[ChipSpec]:
    """One chip, without a peak."""
    peaks = tuple(Peak(precision=p, tflops=None, source=_NO_PEAK) for p in get_args(PeakPrecision))
    return [
        ChipSpec(
            name="CPU",
            vendor="cpu",
            memory_gb=None,
            memory_source="the machine's own memory, read when a run ends",
            peaks=peaks,
            reference=True,
        )
    ]


@hookimpl
def probe() -> list[ProbeResult]:
    """Every machine has one; any number of workers can share it."""
    return [ProbeResult(chip="CPU", device_name=cpu_model(), count=None)]


@hookimpl
def launch_env(plan: Plan) -> dict[str, str]:
    """Share the cores between the workers: without this each would take all, or torchrun's default of one."""
    return {"OMP_NUM_THREADS": str(max(1, usable_cores() // plan.topology.chips_per_node))}


@hookimpl
def init_device(plan: Plan) -> Device:
    """Pin fp32 products to fp32; a ``tf32`` plan lets oneDNN use TF32 on CPUs that have it."""
    import torch

    torch.set_float32_matmul_precision("high" if plan.hyper_parameters.precision == "tf32" else "highest")
    return Device(
        torch_device="cpu",
        index=0,
        name=cpu_model(),
        collective_backend="gloo",
        math_mode={"float32_matmul_precision": torch.get_float32_matmul_precision()},
    )


@hookimpl
def prepare_engine(plan: Plan) -> None:
    """Let the CPU stand in for CUDA in megatron-core; point DeepSpeed at it."""
    if plan.engine == "megatron":
        import torch

        from core.engines.megatron.facade import install

        install(torch.device("cpu"))
    if plan.engine == "deepspeed":
        os.environ["DS_ACCELERATOR"] = "cpu"  # which DeepSpeed reads while it is imported
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())


@hookimpl
def describe_environment() -> dict[str, str]:
    """Threads and math libraries; the CPU's name and cores are in what core describes."""
    import torch

    backends = {name: getattr(torch.backends, name) for name in ("mkl", "mkldnn", "openmp")}
    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_libraries": ", ".join(name for name, module in backends.items() if module.is_available()),
        "torch_threads": str(torch.get_num_threads()),
    }
