"""What a reader of the record must know of the machine and the software."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

import psutil

from schemas.units import GIB

LIBRARIES = (
    "accelmark", "torch", "deepspeed", "megatron-core", "transformers", "peft", "triton", "numpy", "sentencepiece",
    "safetensors",
)  # fmt: skip
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "NCCL_ALGO", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE", "NCCL_P2P_DISABLE", "NCCL_PROTO",
    "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TORCHINDUCTOR_MAX_AUTOTUNE", "SOURCE_DATE_EPOCH",
)  # fmt: skip
"""The only environment variables that are recorded; others may hold secrets."""


def describe() -> dict[str, str]:
    """Machine, operating system, library versions and the allow-listed variables."""
    facts = {
        "machine": _machine(),
        "cpu": cpu_model(),
        "cpu_cores": str(os.cpu_count()),
        "memory_gib": f"{psutil.virtual_memory().total / GIB:.1f}",
        "os": _os(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "container": container() or "none seen",
        "network": network(),
    }
    facts |= {name: version for name in LIBRARIES if (version := _version(name))}
    return facts | variables(VARIABLES)


def variables(names: Iterable[str]) -> dict[str, str]:
    """Those of ``names`` that are set, as records hold them; for plugins, which add variables of their own."""
    return {f"env {name}": os.environ[name] for name in names if name in os.environ}


def told(readers: Mapping[str, Callable[[], object]]) -> dict[str, str]:
    """What each reader answers, as text; without those that answer None or fail, as vendors' libraries may."""
    facts = {}
    for name, read in readers.items():
        try:
            value = read()
        except Exception:
            continue
        if value is not None:
            facts[name] = str(value)
    return facts


def container() -> str | None:
    """The kind of container that this process runs in, by the marks that each leaves; None without any."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if "APPTAINER_CONTAINER" in os.environ or "SINGULARITY_CONTAINER" in os.environ:
        return "apptainer"
    marks = {"docker": "/.dockerenv", "podman": "/run/.containerenv"}
    return next((kind for kind, mark in marks.items() if Path(mark).exists()), None)


def network() -> str:
    """The interfaces that are up, with their speed where the driver tells; InfiniBand ports with their rate."""
    found = []
    for name, state in sorted(psutil.net_if_stats().items()):
        if state.isup and name != "lo":
            found.append(f"{name} {state.speed} Mb/s" if state.speed else name)
    for rate in sorted(Path("/sys/class/infiniband").glob("*/ports/*/rate")):
        try:
            found.append(f"{rate.parts[4]} port {rate.parts[6]} {rate.read_text(encoding='ascii').strip()}")
        except OSError:
            continue
    return ", ".join(found) or "loopback only"


def _machine() -> str:
    """The vendor's name of the machine, where the firmware tells."""
    product = Path("/sys/class/dmi/id/product_name")
    try:
        return product.read_text(encoding="utf-8").strip() or platform.machine()
    except OSError:
        return platform.machine()


def cpu_model() -> str:
    """What the CPU calls itself, or the machine architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on; a container or a scheduler can have limited them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
