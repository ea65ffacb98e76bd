"""The driver's side of the MetaX plugin: which cards are here, which one a rank has, and what it tells."""
# ruff: noqa: N802 - the stand-in has pymxsml's names

import sys
from types import SimpleNamespace

import pytest

from core import plugins
from core.errors import DeviceError
from core.plugins import select
from plugins import metax
from plugins.metax import telemetry
from plugins.metax.chips import CHIPS, match
from schemas.chip import Device, ProbeResult, TelemetryReading

GIB = 1024**3


class FakeMxsml:
    """The part of ``pymxsml`` that the plugin uses, over cards ``(uuid, name)``; ``silent`` functions fail."""

    MXSML_TEMPERATURE_HOTSPOT, MXSML_USAGE_XCORE = 0, 4

    def __init__(self, *cards, silent=(), driver_runs=True):
        self.cards, self.silent, self.driver_runs = cards, silent, driver_runs

    def _told(self, function, value):
        if function in self.silent:
            raise ValueError("MXSML_ERROR_NOT_SUPPORTED")
        return value

    def mxSmlInit(self):
        if not self.driver_runs:
            raise OSError("libmxsml.so: cannot open")

    def mxSmlGetDeviceCount(self):
        return len(self.cards)

    def mxSmlGetDeviceInfo(self, device):
        uuid, name = self.cards[device]
        return SimpleNamespace(uuid=uuid, deviceName=name)

    def mxSmlGetTemperatureInfo(self, device, sensor):
        assert sensor == self.MXSML_TEMPERATURE_HOTSPOT
        return self._told("temperature", 4150 + 100 * device)

    def mxSmlGetBoardPowerInfo(self, device):
        return self._told("power", [SimpleNamespace(power=60_500), SimpleNamespace(power=20_000 + 1000 * device)])

    def mxSmlGetDeviceIpUsage(self, device, unit):
        assert unit == self.MXSML_USAGE_XCORE
        return self._told("usage", 98)

    def mxSmlGetMemoryInfo(self, device):
        return SimpleNamespace(vramUse=self._told("memory", 3 * GIB // 1024))


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path, tells):
    """No library, no tool, no driver, whatever this machine really has."""
    monkeypatch.setitem(sys.modules, "pymxsml", None)
    for name in telemetry.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(telemetry, "_DRIVER_DEVICE", tmp_path / "mxcd")
    tells(telemetry.SMI, None)
    telemetry.mxsml.cache_clear()
    yield
    telemetry.mxsml.cache_clear()


@pytest.fixture
def plug_in(monkeypatch):
    """Put the library and cards into this machine."""

    def plug(*cards, **options):
        library = FakeMxsml(*cards, **options)
        monkeypatch.setitem(sys.modules, "pymxsml", library)
        telemetry.mxsml.cache_clear()
        return library

    return plug


def device(index):
    return Device(torch_device=f"cuda:{index}", index=index, name="x", collective_backend="nccl", math_mode={})


# --- chips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("MetaX C500", "C500"),
        ("MXC500", "C500"),
        ("C500", "C500"),
        ("MetaX C550", "C550"),
        ("MetaX N260", None),
        ("MetaX C500X", None),
        ("NVIDIA H200", None),
    ],
)
def test_a_driver_name_stands_for_a_chip_or_for_none(name, chip):
    assert match(name) == chip


def test_no_peak_is_claimed_and_each_says_why():
    assert [(chip.name, chip.memory_gb) for chip in CHIPS] == [("C500", 64), ("C550", 64)]
    assert {peak.tflops for chip in CHIPS for peak in chip.peaks} == {None}
    assert all("ACCELMARK_CHIPS" in peak.source and chip.memory_source for chip in CHIPS for peak in chip.peaks)
    assert select("metax").chip("C500").vendor == "metax"


# --- probe ----------------------------------------------------------------------------------------------------


def test_probe_finds_nothing_on_a_machine_without_cards(plug_in):
    assert metax.probe() == []
    plug_in()
    assert metax.probe() == []
    plug_in(driver_runs=False)
    assert metax.probe() == []


def test_probe_counts_cards_by_type_and_takes_them_from_nvidia(plug_in):
    plug_in(("a1", "MetaX C500"), ("b2", "MetaX C500"), ("c3", "MetaX N260"))
    assert select("metax").probe() == (
        ProbeResult(chip="C500", device_name="MetaX C500", count=2, replaces=("nvidia",)),
        ProbeResult(chip=None, device_name="MetaX N260", count=1, replaces=("nvidia",)),
    )


def test_cards_that_nvidia_s_plugin_sees_too_are_counted_once(plug_in, monkeypatch):
    """A driver that pretends to be NVIDIA's: the probe that knows better wins."""
    plug_in(("a1", "MetaX C500"))
    from plugins import nvidia

    monkeypatch.setattr(nvidia.telemetry, "device_names", lambda: ["NVIDIA H100 80GB HBM3"])
    vendors = {found.vendor.name for found in plugins.probe_all()[0]}
    assert vendors >= {"cpu", "metax"}
    assert "nvidia" not in vendors


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"MACA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 1),
        ({"MACA_VISIBLE_DEVICES": "0,1", "CUDA_VISIBLE_DEVICES": "0"}, 2),
        ({"MACA_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "0"}, 1),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"MACA_VISIBLE_DEVICES": "b2"}, 1),
    ],
)
def test_probe_honours_both_variables(plug_in, monkeypatch, environment, count):
    plug_in(("a1", "MetaX C500"), ("b2", "MetaX C500"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sum(result.count for result in metax.probe()) == count


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("mx_smi_2.0.12.txt", ["MXC500"]),
        ("mx_smi_2.2.4.txt", ["MetaX C550", "MetaX C550"]),
    ],
)
def test_without_the_library_the_tool_is_asked(sample, tells, file, names):
    tells(telemetry.SMI, sample(file))
    (result,) = metax.probe()
    assert (result.device_name, result.count, result.chip) == (names[0], len(names), match(names[0]))
    assert result.replaces == ("nvidia",)


def test_another_vendor_s_tool_of_the_same_name_is_none_of_ours(sample, tells):
    tells(telemetry.SMI, sample("moffett_mx_smi.txt"))
    assert metax.probe() == []
    assert metax.collect_telemetry(device(0)) is None
    assert telemetry.smi_versions() == {}
    table = sample("mx_smi_2.2.8.txt")  # rows like MetaX's, but nothing says that they are
    assert telemetry.parse_smi(table) == []


@pytest.mark.parametrize("output", [None, "", "mx-smi: no device"])
def test_a_driver_that_nothing_tells_of_is_an_error(tells, tmp_path, output):
    tells(telemetry.SMI, output)
    assert metax.probe() == []
    (tmp_path / "mxcd").touch()
    with pytest.raises(DeviceError, match="neither pymxsml nor mx-smi tells of them") as error:
        metax.probe()
    assert "PATH" in error.value.fix


# --- telemetry ------------------------------------------------------------------------------------------------


def test_the_library_s_reading_in_our_units(plug_in):
    plug_in(("a1", "MetaX C500"), ("b2", "MetaX C500"))
    assert select("metax").collect_telemetry(device(1)) == TelemetryReading(
        power_w=81.5, temperature_c=42.5, utilisation_percent=98, memory_used_gib=3
    )
    assert metax.collect_telemetry(device(2)) is None


def test_a_rank_reads_its_own_card(plug_in, monkeypatch):
    plug_in(("a1", "MetaX C500"), ("b2", "MetaX C500"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert metax.collect_telemetry(device(0)).power_w == 81.5


def test_what_the_card_does_not_tell_is_unknown(plug_in):
    plug_in(("a1", "MetaX C500"), silent=("power", "temperature", "usage", "memory"))
    assert metax.collect_telemetry(device(0)) == TelemetryReading()


TABLES = {
    "mx_smi_2.0.12.txt": [(56, 35, 0, 914)],
    "mx_smi_2.2.4.txt": [(53, 29, 0, 858), (54, 30, 0, 858)],
}


@pytest.mark.parametrize("file", TABLES)
def test_the_tool_s_layouts(sample, tells, file):
    tells(telemetry.SMI, sample(file))
    for index, (watts, degrees, busy, used_mib) in enumerate(TABLES[file]):
        assert metax.collect_telemetry(device(index)) == TelemetryReading(
            power_w=watts, temperature_c=degrees, utilisation_percent=busy, memory_used_gib=used_mib / 1024
        )
    assert metax.collect_telemetry(device(len(TABLES[file]))) is None


def test_the_layout_with_persistence_and_performance_state(sample, tells):
    tells(telemetry.SMI, sample("mx_smi_2.2.4.txt") + sample("mx_smi_2.2.8.txt"))
    assert metax.collect_telemetry(device(2)) == TelemetryReading(
        power_w=29, temperature_c=37, utilisation_percent=0, memory_used_gib=666 / 1024
    )
    assert [result.device_name for result in metax.probe()] == ["MetaX C550", "MetaX N260"]


def test_a_value_that_the_tool_does_not_know_is_unknown(sample, tells):
    text = sample("mx_smi_2.2.4.txt").replace("53W / 450W", "N/A / N/A ").replace("29C", "N/A", 1)
    tells(telemetry.SMI, text)
    assert metax.collect_telemetry(device(0)) == TelemetryReading(
        utilisation_percent=0, memory_used_gib=858 / 1024
    )
    assert metax.collect_telemetry(device(1)).power_w == 54


def test_versions_in_the_head_of_the_table(sample, tells):
    tells(telemetry.SMI, sample("mx_smi_2.2.4.txt"))
    assert telemetry.smi_versions() == {
        "metax_driver": "2.15.9", "maca_system": "2.32.0.6", "metax_bios": "1.25.1.0",
    }  # fmt: skip
    tells(telemetry.SMI, sample("mx_smi_2.2.4.txt").replace("2.32.0.6", "unknown "))
    assert "maca_system" not in telemetry.smi_versions()


def test_without_library_and_tool_nothing_is_told():
    assert metax.collect_telemetry(device(0)) is None
    assert telemetry.smi_versions() == {}


# --- environment of the workers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "switch"), [("bf16", "0"), ("fp32", "0"), ("tf32", "1")])
def test_workers_share_the_cores_and_get_the_switch_for_tf32(make_plan, monkeypatch, precision, switch):
    monkeypatch.setattr(metax, "usable_cores", lambda: 64)
    assert metax.launch_env(make_plan(precision, per_node=8)) == {
        "OMP_NUM_THREADS": "8",
        "METAX_USE_TF32": switch,
    }


def test_megatron_gets_one_queue_to_the_device(make_plan):
    assert metax.launch_env(make_plan(engine="megatron"))["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in metax.launch_env(make_plan(engine="torch"))
