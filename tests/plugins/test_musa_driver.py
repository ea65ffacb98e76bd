"""The driver's side of the Moore Threads plugin: which cards are here, which one a rank has, and what it tells."""
# ruff: noqa: N802 - the stand-in has pymtml's names

import json
import sys
from contextlib import contextmanager

import pytest

from core.errors import DeviceError
from core.plugins import select
from plugins import torch_musa
from plugins.torch_musa import telemetry
from plugins.torch_musa.chips import CHIPS, match
from schemas.chip import Device, ProbeResult, TelemetryReading

GIB = 1024**3


class FakeMtml:
    """The part of ``pymtml`` that the plugin uses, over cards ``(uuid, name)``; ``silent`` functions fail."""

    class MTMLError(Exception):
        """As pymtml's."""

    def __init__(self, *cards, silent=(), driver_runs=True):
        self.cards, self.silent, self.driver_runs = cards, silent, driver_runs

    def _told(self, function, value):
        if function in self.silent:
            raise self.MTMLError("Not Supported")
        return value

    def mtmlLibraryInit(self):
        if not self.driver_runs:
            raise self.MTMLError("Driver Not Loaded")

    def mtmlLibraryInitSystem(self):
        return "system"

    def mtmlSystemGetDriverVersion(self, system):
        assert system == "system"
        return self._told("driver", "2.7.0")

    def mtmlLibraryCountDevice(self):
        return len(self.cards)

    def mtmlLibraryInitDeviceByIndex(self, index):
        return index

    def mtmlDeviceGetUUID(self, device):
        return self._told("uuid", self.cards[device][0])

    def mtmlDeviceGetName(self, device):
        return self.cards[device][1]

    def mtmlDeviceGetPowerUsage(self, device):
        return self._told("power", 109_510 + device)

    @contextmanager
    def mtmlGpuContext(self, device):
        yield ("gpu", device)

    @contextmanager
    def mtmlMemoryContext(self, device):
        yield ("memory", device)

    def mtmlGpuGetTemperature(self, gpu):
        assert gpu[0] == "gpu"
        return self._told("temperature", 51)

    def mtmlGpuGetUtilization(self, gpu):
        assert gpu[0] == "gpu"
        return self._told("utilisation", 98)

    def mtmlGpuGetClock(self, gpu):
        assert gpu[0] == "gpu"
        return self._told("clock", 1750)

    def mtmlMemoryGetUsed(self, memory):
        assert memory[0] == "memory"
        return self._told("memory", 3 * GIB)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path, tells):
    """No library, no tool, no driver, whatever this machine really has."""
    monkeypatch.setitem(sys.modules, "pymtml", None)
    monkeypatch.delenv("MUSA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(telemetry, "_DRIVER_DEVICE", tmp_path / "mtgpu.0")
    tells(telemetry.GMI, None)
    telemetry.mtml.cache_clear()
    yield
    telemetry.mtml.cache_clear()


@pytest.fixture
def plug_in(monkeypatch):
    """Put the library and cards into this machine."""

    def plug(*cards, **options):
        library = FakeMtml(*cards, **options)
        monkeypatch.setitem(sys.modules, "pymtml", library)
        telemetry.mtml.cache_clear()
        return library

    return plug


def device(index):
    return Device(torch_device=f"musa:{index}", index=index, name="x", collective_backend="mccl", math_mode={})


# --- chips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("MTT S4000", "S4000"),
        ("S4000", "S4000"),
        ("MTT S5000", "S5000"),
        ("MTT S80", None),
        ("MTT S3000", None),
        ("MTT S4000 vGPU", None),
        ("NVIDIA H200", None),
    ],
)
def test_a_driver_name_stands_for_a_chip_or_for_none(name, chip):
    assert match(name) == chip


def test_every_peak_has_a_source_and_those_of_the_s4000_are_the_announced_ones():
    assert all(peak.source and chip.memory_source for chip in CHIPS for peak in chip.peaks)
    s4000 = select("torch_musa").chip("S4000")
    assert [(peak.precision, peak.tflops) for peak in s4000.peaks] == [
        ("fp32", 25), ("tf32", 50), ("fp16", 100), ("bf16", 100), ("fp8", None),
    ]  # fmt: skip
    assert {peak.tflops for peak in select("torch_musa").chip("S5000").peaks} == {None}
    assert s4000.memory_gb == 48


# --- probe ----------------------------------------------------------------------------------------------------


def test_probe_finds_nothing_on_a_machine_without_cards(plug_in):
    assert torch_musa.probe() == []
    plug_in()
    assert torch_musa.probe() == []
    plug_in(driver_runs=False)
    assert torch_musa.probe() == []


def test_probe_counts_cards_by_type(plug_in):
    plug_in(("a1", "MTT S4000"), ("b2", "MTT S4000"), ("c3", "MTT S80"))
    assert select("torch_musa").probe() == (
        ProbeResult(chip="S4000", device_name="MTT S4000", count=2),
        ProbeResult(chip=None, device_name="MTT S80", count=1),
    )


@pytest.mark.parametrize(("visible", "count"), [("1", 1), ("0,1", 2), ("b2", 1), ("", 0), ("7", 0)])
def test_probe_honours_visible_devices(plug_in, monkeypatch, visible, count):
    plug_in(("a1", "MTT S4000"), ("b2", "MTT S4000"))
    monkeypatch.setenv("MUSA_VISIBLE_DEVICES", visible)
    assert sum(result.count for result in torch_musa.probe()) == count


def test_a_card_without_a_uuid_can_be_named_by_its_index(plug_in, monkeypatch):
    plug_in(("a1", "MTT S4000"), ("b2", "MTT S80"), silent=("uuid",))
    monkeypatch.setenv("MUSA_VISIBLE_DEVICES", "1")
    assert [result.device_name for result in torch_musa.probe()] == ["MTT S80"]


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("mthreads_gmi_s4000.json", "MTT S4000", 1),
        ("mthreads_gmi_s5000.json", "MTT S5000", 2),
        ("mthreads_gmi_flat.json", "MTT S4000", 1),
    ],
)
def test_without_the_library_the_tool_is_asked(sample, tells, file, name, count):
    tells(telemetry.GMI, sample(file))
    assert torch_musa.probe() == [ProbeResult(chip=match(name), device_name=name, count=count)]


def test_the_tool_s_cards_can_be_named_by_uuid(sample, tells, monkeypatch):
    tells(telemetry.GMI, sample("mthreads_gmi_s5000.json"))
    monkeypatch.setenv("MUSA_VISIBLE_DEVICES", "5ebdeb63")
    assert sum(result.count for result in torch_musa.probe()) == 1
    assert torch_musa.collect_telemetry(device(0)).power_w == 97.09
    assert torch_musa.collect_telemetry(device(1)) is None


@pytest.mark.parametrize(
    "output", [None, "", "mthreads-gmi: driver not loaded", "[]", '{"GPU": "none"}', '{"GPU": []}']
)
def test_a_driver_that_nothing_tells_of_is_an_error(tells, tmp_path, output):
    tells(telemetry.GMI, output)
    assert torch_musa.probe() == []
    (tmp_path / "mtgpu.0").touch()
    with pytest.raises(DeviceError, match="neither mthreads-ml-py nor mthreads-gmi tells of them") as error:
        torch_musa.probe()
    assert "pip install mthreads-ml-py" in error.value.fix


# --- telemetry ------------------------------------------------------------------------------------------------


def test_the_library_s_reading_in_our_units(plug_in):
    plug_in(("a1", "MTT S4000"), ("b2", "MTT S4000"))
    assert select("torch_musa").collect_telemetry(device(1)) == TelemetryReading(
        power_w=109.511, temperature_c=51, utilisation_percent=98, sm_clock_mhz=1750, memory_used_gib=3
    )
    assert torch_musa.collect_telemetry(device(2)) is None


def test_a_rank_reads_its_own_card(plug_in, monkeypatch):
    plug_in(("a1", "MTT S4000"), ("b2", "MTT S4000"))
    monkeypatch.setenv("MUSA_VISIBLE_DEVICES", "1,0")
    assert torch_musa.collect_telemetry(device(0)).power_w == 109.511


def test_what_the_card_does_not_tell_is_unknown(plug_in):
    plug_in(("a1", "MTT S4000"), silent=("power", "temperature", "utilisation", "clock", "memory", "driver"))
    assert torch_musa.collect_telemetry(device(0)) == TelemetryReading()
    assert telemetry.driver_version() is None


def test_the_tool_s_reading_in_our_units(sample, tells):
    tells(telemetry.GMI, sample("mthreads_gmi_s5000.json"))
    assert torch_musa.collect_telemetry(device(0)) == TelemetryReading(
        power_w=96.66, temperature_c=27, utilisation_percent=0, memory_used_gib=0
    )
    assert telemetry.driver_version() == "3.3.5-server"
    tells(telemetry.GMI, sample("mthreads_gmi_s4000.json"))
    assert torch_musa.collect_telemetry(device(0)) == TelemetryReading(
        sm_clock_mhz=1665, memory_used_gib=1339 / 1024
    )


def test_the_tool_s_flat_layout(sample, tells):
    tells(telemetry.GMI, sample("mthreads_gmi_flat.json"))
    assert torch_musa.collect_telemetry(device(0)) == TelemetryReading(power_w=150, temperature_c=45)


def test_a_value_that_the_tool_does_not_know_is_unknown(sample, tells):
    told = json.loads(sample("mthreads_gmi_s5000.json"))
    told["GPU"][0] |= {"Power Readings": {"Power Draw ": "N/A"}, "Temperature": {}, "Utilization": None}
    tells(telemetry.GMI, json.dumps(told))
    assert torch_musa.collect_telemetry(device(0)) == TelemetryReading(memory_used_gib=0)


def test_without_library_and_tool_nothing_is_told():
    assert torch_musa.collect_telemetry(device(0)) is None
    assert telemetry.driver_version() is None


def test_the_library_tells_its_driver(plug_in):
    plug_in(("a1", "MTT S4000"))
    assert telemetry.driver_version() == "2.7.0"


# --- environment of the workers -------------------------------------------------------------------------------


def test_workers_share_the_cores_and_may_run_long_kernels(make_plan, monkeypatch):
    monkeypatch.setattr(torch_musa, "usable_cores", lambda: 64)
    assert torch_musa.launch_env(make_plan(per_node=8)) == {
        "OMP_NUM_THREADS": "8",
        "PYTORCH_MUSA_ALLOC_CONF": "expandable_segments:True",
        "MUSA_KERNEL_TIMEOUT": "3600000",
    }
    assert torch_musa.launch_env(make_plan(per_node=128))["OMP_NUM_THREADS"] == "1"
