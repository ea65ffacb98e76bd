"""Plans, an NVML that needs no driver, and what stands in for other vendors' tools and torch modules."""
# ruff: noqa: N802, N815 - the stand-in has pynvml's names

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from plugins.nvidia import telemetry
from schemas.hyperparameters import HyperParameters

GIB = 1024**3
SAMPLES = Path(__file__).parent / "samples"


@dataclass
class FakeGpu:
    """One GPU as NVML sees it; a field that is None is 'not supported'."""

    uuid: str
    name: str = "NVIDIA H200"
    power_mw: int | None = 345_600
    celsius: int | None = 55
    utilisation: int | None = 98
    sm_mhz: int | None = 1980
    memory_used: int | None = 70 * GIB
    power_limit_mw: int | None = 700_000
    ecc: list[int] | None = field(default_factory=lambda: [1, 1])
    mig: list[int] | None = field(default_factory=lambda: [0, 0])
    links: int | None = 18
    clock_reasons: int | None = 0


class FakeNvml:
    """The part of ``pynvml`` that the plugin uses, over a list of GPUs."""

    class NVMLError(Exception):
        """As pynvml's."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_NVLINK_MAX_LINKS, NVML_DEVICE_MIG_ENABLE = 0, 1, 18, 1
    nvmlClocksEventReasonGpuIdle = 0x1
    nvmlClocksEventReasonApplicationsClocksSetting = 0x2
    nvmlClocksEventReasonSwPowerCap = 0x4
    nvmlClocksEventReasonHwSlowdown = 0x8
    nvmlClocksEventReasonSwThermalSlowdown = 0x20
    nvmlClocksEventReasonHwThermalSlowdown = 0x40
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80

    def __init__(self, *gpus: FakeGpu, driver_runs: bool = True) -> None:
        self.gpus, self.slices, self.driver_runs = gpus, [], driver_runs

    def _told(self, value):
        if value is None:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self):
        self._told(self.driver_runs or None)

    def nvmlSystemGetDriverVersion(self):
        return "580.10"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self._told(next((gpu for gpu in (*self.gpus, *self.slices) if gpu.uuid == uuid), None))

    def nvmlDeviceGetUUID(self, gpu):
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu):
        return gpu.name

    def nvmlDeviceGetMigMode(self, gpu):
        return self._told(gpu.mig)

    def nvmlDeviceGetPowerUsage(self, gpu):
        return self._told(gpu.power_mw)

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._told(gpu.celsius)

    def nvmlDeviceGetUtilizationRates(self, gpu):
        return SimpleNamespace(gpu=self._told(gpu.utilisation), memory=1)

    def nvmlDeviceGetClockInfo(self, gpu, clock):
        assert clock == self.NVML_CLOCK_SM
        return self._told(gpu.sm_mhz)

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(used=self._told(gpu.memory_used), total=141 * GIB)

    def nvmlDeviceGetPowerManagementLimit(self, gpu):
        return self._told(gpu.power_limit_mw)

    def nvmlDeviceGetEccMode(self, gpu):
        return self._told(gpu.ecc)

    def nvmlDeviceGetNvLinkState(self, gpu, link):
        return int(link < self._told(gpu.links))

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu):
        return self._told(gpu.clock_reasons)


@pytest.fixture
def plug_in(monkeypatch) -> Callable[..., FakeNvml]:
    """Put GPUs into this machine: ``plug_in(FakeGpu(...), ...)``."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def plug(*gpus: FakeGpu, driver_runs: bool = True) -> FakeNvml:
        nvml = FakeNvml(*gpus, driver_runs=driver_runs)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        telemetry.nvml.cache_clear()
        return nvml

    yield plug
    telemetry.nvml.cache_clear()


@pytest.fixture
def gpu() -> type[FakeGpu]:
    return FakeGpu


@pytest.fixture
def make_plan():
    """A plan with what plugins read of it."""

    def make(precision="bf16", chip="H200", engine="torch", per_node=1, **other):
        return SimpleNamespace(
            engine=engine,
            chip=SimpleNamespace(name=chip),
            topology=SimpleNamespace(chips_per_node=per_node),
            compute_precision="bf16" if precision == "amp" else precision,
            model=SimpleNamespace(head_size=other.get("head_size", 128)),
            lora=None,
            vision=None,
            hyper_parameters=HyperParameters(
                precision=precision,
                local_batch_size=1,
                sequence_length=8,
                learning_rate=1e-3,
                **{name: value for name, value in other.items() if name != "head_size"},
            ),
        )

    return make


@pytest.fixture
def sample():
    """The text of a file in ``samples``; its README tells where each comes from."""
    return lambda name: (SAMPLES / name).read_text(encoding="utf-8")


@pytest.fixture
def tells(monkeypatch):
    """Let a vendor's tool tell a text: ``tells(tool, text)``; None as where it is not installed."""

    def let(tool, text):
        monkeypatch.setattr(tool, "read", lambda: text)
        monkeypatch.setattr(tool, "sample", lambda: text)

    return let


@dataclass
class FakeTorchModule:
    """The CUDA-shaped part of a vendor's torch module (``torch.musa``) that plugins and core call."""

    name: str = "MTT S4000"
    cards: int = 2
    bf16: bool = True
    selected: list[int] = field(default_factory=list)
    used: int = 30 * GIB
    capacity: int = 48 * GIB

    def is_available(self):
        return self.cards > 0

    def device_count(self):
        return self.cards

    def set_device(self, index):
        self.selected.append(index)

    def get_device_name(self, index):
        assert index < self.cards
        return self.name

    def is_bf16_supported(self):
        return self.bf16

    def get_device_capability(self, index):
        assert index < self.cards
        return 2, 2

    def memory_stats(self, index):
        assert index < self.cards
        return {
            "allocated_bytes.all.peak": 20 * GIB,
            "reserved_bytes.all.peak": 25 * GIB,
            "reserved_bytes.all.current": 24 * GIB,
            "num_alloc_retries": 0,
            "num_ooms": 0,
        }

    def mem_get_info(self, index):
        assert index < self.cards
        return self.capacity - self.used, self.capacity


@pytest.fixture
def put_torch_module(monkeypatch):
    """Give torch a device type: ``put_torch_module("musa", name=...)``; torch itself does not know it."""
    torch = pytest.importorskip("torch")
    known = torch.get_device_module

    def put(device_type, **changes):
        module = FakeTorchModule(**changes)
        monkeypatch.setattr(torch, device_type, module, raising=False)
        monkeypatch.setattr(
            torch,
            "get_device_module",
            lambda device=None: module if str(device).startswith(device_type) else known(device),
        )
        return module

    return put


@pytest.fixture
def fake_deepspeed(monkeypatch):
    """A ``deepspeed`` that takes accelerators; those that it was given."""
    accelerators = []
    accelerator = ModuleType("deepspeed.accelerator")
    accelerator.set_accelerator = accelerators.append
    mlu = ModuleType("deepspeed.accelerator.mlu_accelerator")
    mlu.MLU_Accelerator = type("MLU_Accelerator", (), {})
    package = ModuleType("deepspeed")
    package.accelerator, accelerator.mlu_accelerator = accelerator, mlu
    for module in (package, accelerator, mlu):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("DS_ACCELERATOR", "so that it is put back")
    monkeypatch.delenv("DS_ACCELERATOR")
    return accelerators


@pytest.fixture
def restore_math_mode():
    """Put torch's precision switches back."""
    torch = pytest.importorskip("torch")
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
