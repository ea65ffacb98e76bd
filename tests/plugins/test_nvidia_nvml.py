"""NVML's side of the NVIDIA plugin: what is here, which GPU a rank has, and what it tells."""

import sys

import pytest

from core.errors import DeviceError
from core.plugins import select
from plugins import nvidia
from plugins.nvidia import telemetry
from plugins.nvidia.chips import CHIPS, match
from schemas.chip import Device, ProbeResult, TelemetryReading

A, B, C = "GPU-aaaa1111-0000", "GPU-bbbb2222-0000", "GPU-aabb3333-0000"


def device(index: int) -> Device:
    return Device(
        torch_device=f"cuda:{index}", index=index, name="NVIDIA H200", collective_backend="nccl", math_mode={}
    )


# --- chips ----------------------------------------------------------------------------------------------------

DRIVER_NAMES = {
    "NVIDIA A100-SXM4-40GB": "A100",
    "A100-SXM4-40GB": "A100",
    "NVIDIA A100-PCIE-40GB": "A100",
    "NVIDIA A100-SXM4-80GB": "A100-80G",
    "NVIDIA A100 80GB PCIe": "A100-80G",
    "NVIDIA A800-SXM4-80GB": "A800",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA H100 NVL": "H100-NVL",
    "NVIDIA H800": "H800",
    "NVIDIA H800 PCIe": "H800-PCIe",
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200-NVL",
    "NVIDIA H20": "H20",
    "NVIDIA B200": "B200",
    "NVIDIA H20-3e": None,
    "NVIDIA GB200": None,
    "NVIDIA GH200 480GB": None,
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
    "NVIDIA H200 (MIG)": None,
    "NVIDIA GeForce RTX 4090": None,
    "MetaX C500": None,
}


@pytest.mark.parametrize(("name", "chip"), DRIVER_NAMES.items())
def test_a_driver_name_stands_for_a_chip_or_for_none(name, chip):
    assert match(name) == chip


def test_every_chip_has_a_driver_name_and_every_peak_a_source():
    assert {chip.name for chip in CHIPS} == {chip for chip in DRIVER_NAMES.values() if chip}
    assert all(peak.source and chip.memory_source for chip in CHIPS for peak in chip.peaks)
    assert all([p.precision for p in chip.peaks] == ["fp32", "tf32", "fp16", "bf16", "fp8"] for chip in CHIPS)


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        ("A100", (19.5, 156, 312, 312, None)),
        ("H100", (67, 494, 989, 989, 1979)),
        ("H800", (67, 494, 989, 989, 1979)),
        ("H200", (67, 494, 989, 989, 1979)),
        ("H100-PCIe", (51, 378, 756, 756, 1513)),
        ("H200-NVL", (60, 417, 835, 835, 1670)),
        ("H800-PCIe", (None, None, None, None, None)),
        ("H20", (44, 74, 148, 148, 296)),
        ("B200", (75, 1100, 2250, 2250, 4500)),
    ],
)
def test_peaks_are_dense(chip, expected):
    spec = select("nvidia").chip(chip)
    assert tuple(peak.tflops for peak in spec.peaks) == expected


@pytest.mark.parametrize(("tokens_per_second", "mfu"), [(2068, 16.3), (2710, 21.4)])
def test_h800_reproduces_its_published_mfu(tokens_per_second, mfu):
    peak = select("nvidia").chip("H800").peak("bf16").tflops
    assert round(6 * 13e9 * tokens_per_second / (peak * 1e12) * 100, 1) == mfu


# --- probe ----------------------------------------------------------------------------------------------------


def test_probe_counts_gpus_by_type(plug_in, gpu):
    plug_in(gpu(A), gpu(B), gpu(C, name="NVIDIA H100 PCIe"))
    assert select("nvidia").probe() == (
        ProbeResult(chip="H200", device_name="NVIDIA H200", count=2),
        ProbeResult(chip="H100-PCIe", device_name="NVIDIA H100 PCIe", count=1),
    )


def test_probe_honours_visible_devices(plug_in, gpu, monkeypatch):
    plug_in(gpu(A), gpu(B), gpu(C))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert [result.count for result in nvidia.probe()] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert nvidia.probe() == []


def test_probe_names_a_gpu_that_it_has_no_peak_for(plug_in, gpu):
    plug_in(gpu(A, name="NVIDIA GeForce RTX 4090"))
    assert nvidia.probe() == [ProbeResult(chip=None, device_name="NVIDIA GeForce RTX 4090", count=1)]


def test_a_gpu_split_by_mig_is_not_taken_for_a_whole_one(plug_in, gpu):
    plug_in(gpu(A, mig=[1, 1]))
    assert nvidia.probe() == [ProbeResult(chip=None, device_name="NVIDIA H200 (MIG)", count=1)]


def test_probe_finds_nothing_without_gpus_driver_or_module(plug_in, monkeypatch, tmp_path):
    plug_in()
    assert nvidia.probe() == []
    plug_in(driver_runs=False)
    assert nvidia.probe() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(telemetry, "_CONTROL_DEVICE", tmp_path / "absent")
    telemetry.nvml.cache_clear()
    assert nvidia.probe() == []


def test_gpus_without_the_python_module_are_not_passed_over_in_silence(plug_in, monkeypatch, tmp_path):
    plug_in()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(telemetry, "_CONTROL_DEVICE", tmp_path)
    telemetry.nvml.cache_clear()
    with pytest.raises(DeviceError, match="nvidia-ml-py is not installed") as error:
        nvidia.probe()
    assert error.value.fix == "pip install nvidia-ml-py"
    assert error.value.exit_code == 3


# --- which GPU ------------------------------------------------------------------------------------------------

VISIBLE = {
    None: [A, B, C],
    "": [],
    "0,1,2": [A, B, C],
    "2,0": [C, A],
    " 1 , 2": [B, C],
    "1,9,0": [B],  # CUDA stops at the first entry that names no device
    "-1": [],
    "0,-1,1": [A],
    "nonsense": [],
    B: [B],
    f"{C},{A}": [C, A],
    "GPU-b": [B],
    "GPU-aaaa,0": [A, A],
    "GPU-aa": [],  # two fit
    "GPU-ffff": [],
    "MIG-1234": ["MIG-1234"],
    "MIG-9999": [],
}


@pytest.mark.parametrize(("value", "uuids"), VISIBLE.items(), ids=repr)
def test_devices_are_numbered_as_cuda_numbers_them(plug_in, gpu, monkeypatch, value, uuids):
    nvml = plug_in(gpu(A), gpu(B), gpu(C))
    nvml.slices.append(gpu("MIG-1234"))
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert [handle.uuid for handle in telemetry.visible_handles(nvml)] == uuids


# --- telemetry and environment --------------------------------------------------------------------------------


def test_a_sample_in_the_schema_s_units(plug_in, gpu):
    plug_in(gpu(A, clock_reasons=0x4))
    assert select("nvidia").collect_telemetry(device(0)) == TelemetryReading(
        power_w=345.6, temperature_c=55, utilisation_percent=98, sm_clock_mhz=1980, memory_used_gib=70,
        clock_limits=("power cap",),
    )  # fmt: skip


def test_a_sample_is_of_this_rank_s_gpu(plug_in, gpu, monkeypatch):
    plug_in(gpu(A, power_mw=1000), gpu(B, power_mw=2000), gpu(C, power_mw=3000))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"2,{B}")
    assert [nvidia.collect_telemetry(device(index)).power_w for index in (0, 1)] == [3, 2]
    assert nvidia.collect_telemetry(device(2)) is None


@pytest.mark.parametrize(
    ("field", "reading"),
    [
        ("power_mw", "power_w"),
        ("celsius", "temperature_c"),
        ("utilisation", "utilisation_percent"),
        ("sm_mhz", "sm_clock_mhz"),
        ("memory_used", "memory_used_gib"),
        ("clock_reasons", "clock_limits"),
    ],
)
def test_what_nvml_does_not_tell_is_none_and_the_rest_is_told(plug_in, gpu, field, reading):
    plug_in(gpu(A, **{field: None}))
    sample = nvidia.collect_telemetry(device(0)).model_dump()
    assert [name for name, value in sample.items() if value is None] == [reading]


def test_zero_is_a_value(plug_in, gpu):
    plug_in(gpu(A, power_mw=0, utilisation=0))
    sample = nvidia.collect_telemetry(device(0))
    assert (sample.power_w, sample.utilisation_percent) == (0, 0)


def test_no_telemetry_without_nvml(plug_in):
    plug_in(driver_runs=False)
    assert nvidia.collect_telemetry(device(0)) is None
    assert telemetry.describe(0) == {}


def test_the_environment_as_far_as_nvml_tells(plug_in, gpu):
    plug_in(gpu(A, clock_reasons=0x1 | 0x4 | 0x40))
    assert telemetry.describe(0) == {
        "nvidia_driver": "580.10",
        "gpu_power_limit_w": "700",
        "gpu_ecc": "on",
        "gpu_nvlinks": "18",
        "gpu_clock_limits": "power cap, thermal slowdown by the hardware",
    }
    silent = gpu(A, power_limit_mw=None, ecc=None, links=None, clock_reasons=None)
    plug_in(silent)
    assert telemetry.describe(0) == {"nvidia_driver": "580.10"}
    plug_in(gpu(A, ecc=[0, 1], links=0))
    described = telemetry.describe(0)
    assert (described["gpu_ecc"], described["gpu_nvlinks"], described["gpu_clock_limits"]) == ("off", "0", "none")


# --- environment of the workers -------------------------------------------------------------------------------


def test_workers_share_the_cores_and_get_an_allocator_that_does_not_fragment(make_plan, monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(nvidia, "usable_cores", lambda: 26)
    assert nvidia.launch_env(make_plan(per_node=8)) == {
        "OMP_NUM_THREADS": "3",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    assert nvidia.launch_env(make_plan(per_node=64))["OMP_NUM_THREADS"] == "1"


def test_megatron_gets_one_queue_to_the_device(make_plan):
    assert nvidia.launch_env(make_plan(engine="megatron"))["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in nvidia.launch_env(make_plan(engine="torch"))


def test_copies_between_peers_get_a_queue_for_each_stream(make_plan):
    assert nvidia.launch_env(make_plan(collectives="peer_copies"))["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"


def test_a_user_s_allocator_settings_under_the_old_name_stay_alone(make_plan, monkeypatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert nvidia.launch_env(make_plan()).keys() == {"OMP_NUM_THREADS"}


def test_the_stand_in_has_nothing_that_pynvml_lacks(plug_in):
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in dir(plug_in()) if name.lower().startswith("nvml")]
    assert len(names) > 20
    assert [name for name in names if not hasattr(pynvml, name)] == []
