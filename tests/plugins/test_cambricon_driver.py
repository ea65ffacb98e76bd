"""The driver's side of the Cambricon plugin: which MLUs are here, which one a rank has, and what it tells."""

import json

import pytest

from core.errors import DeviceError
from core.plugins import select
from plugins import cambricon
from plugins.cambricon import telemetry
from plugins.cambricon.chips import CHIPS, fits, match
from schemas.chip import Device, ProbeResult, TelemetryReading

ANY = "any Cambricon MLU"


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path, tells):
    """No tool and no driver, whatever this machine really has."""
    monkeypatch.delenv("MLU_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(telemetry, "_DRIVER_DEVICE", tmp_path / "cambricon_ctl")
    tells(telemetry.INFO, None)
    tells(telemetry.TABLE, None)


@pytest.fixture
def cnmon(tells, sample):
    """An MLU370-X8: two devices, of which the tool tells a table and a file."""
    tells(telemetry.TABLE, sample("cnmon_5.10.13.txt"))
    tells(telemetry.INFO, sample("cnmon_info.json"))


def device(index):
    return Device(torch_device=f"mlu:{index}", index=index, name="x", collective_backend="cncl", math_mode={})


# --- chips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("MLU370-X8", "MLU370-X8"),
        ("MLU370X8", "MLU370-X8"),
        ("MLU590", "MLU590"),
        ("MLU590-M9", "MLU590"),
        ("MLU590-M9DG", "MLU590"),
        ("MLU370-X4", None),
        ("MLU290-M5", None),
        ("NVIDIA H200", None),
    ],
)
def test_a_driver_name_stands_for_a_chip_or_for_none(name, chip):
    assert match(name) == chip


@pytest.mark.parametrize(
    ("chip", "name", "can_be"),
    [
        ("MLU590", "MLU590-H8", True),
        ("MLU370-X8", "MLU370", True),  # as older torch_mlu names the family alone
        ("MLU370-X8", "MLU370-X4", False),
        ("MLU370-X8", "MLU590", False),
        ("MLU", "MLU590-M9", True),
        ("MLU", "MLU370-X4", True),
        ("MLU", "NVIDIA H200", False),
        ("MLU999", "MLU590", False),
    ],
)
def test_a_device_can_be_the_planned_chip_or_not(chip, name, can_be):
    assert fits(chip, name) is can_be


def test_every_peak_has_a_source_and_those_of_the_mlu370_are_one_device_s():
    assert all(peak.source and chip.memory_source for chip in CHIPS for peak in chip.peaks)
    mlu370 = select("cambricon").chip("MLU370-X8")
    assert [(peak.precision, peak.tflops) for peak in mlu370.peaks] == [
        ("fp32", 16), ("tf32", None), ("fp16", 48), ("bf16", 48), ("fp8", None),
    ]  # fmt: skip
    assert mlu370.memory_gb == 24
    assert "halved" in mlu370.peak("bf16").source


def test_the_chip_of_the_published_sheet_has_no_peak_and_no_memory():
    chip = select("cambricon").chip("MLU")
    assert chip.memory_gb is None
    assert {peak.tflops for peak in chip.peaks} == {None}
    assert "llava1.5_13b" in chip.peak("bf16").source


# --- probe ----------------------------------------------------------------------------------------------------


def test_probe_finds_nothing_on_a_machine_without_mlus():
    assert cambricon.probe() == []


def test_probe_counts_devices_by_type_and_all_of_them_as_the_unnamed_chip(cnmon):
    assert select("cambricon").probe() == (
        ProbeResult(chip="MLU370-X8", device_name="MLU370-X8", count=2),
        ProbeResult(chip="MLU", device_name=ANY, count=2),
    )


def test_a_card_without_an_entry_is_still_an_mlu(tells, sample):
    tells(telemetry.TABLE, sample("cnmon_5.10.31.txt"))
    assert cambricon.probe() == [
        ProbeResult(chip=None, device_name="MLUXXX-XX", count=1),
        ProbeResult(chip="MLU", device_name=ANY, count=1),
    ]


def test_without_the_table_the_file_names_the_devices(tells, sample):
    tells(telemetry.INFO, sample("cnmon_info.json"))
    assert [result.count for result in cambricon.probe()] == [2, 2]


@pytest.mark.parametrize(("visible", "count"), [("1", 1), ("0,1", 2), ("", 0), ("5", 0)])
def test_probe_honours_visible_devices(cnmon, monkeypatch, visible, count):
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", visible)
    assert sum(result.count for result in cambricon.probe() if result.chip == "MLU") == count


@pytest.mark.parametrize("output", [None, "", "cnmon: driver not found", "CNMON v5.10.13"])
def test_a_driver_that_nothing_tells_of_is_an_error(tells, tmp_path, output):
    tells(telemetry.TABLE, output)
    assert cambricon.probe() == []
    (tmp_path / "cambricon_ctl").touch()
    with pytest.raises(DeviceError, match="cnmon does not tell of them") as error:
        cambricon.probe()
    assert "PATH" in error.value.fix


# --- telemetry ------------------------------------------------------------------------------------------------


def test_the_file_s_reading_with_the_table_s_power(cnmon):
    assert select("cambricon").collect_telemetry(device(0)) == TelemetryReading(
        power_w=106, temperature_c=32, utilisation_percent=98, memory_used_gib=2
    )
    assert cambricon.collect_telemetry(device(1)).utilisation_percent == 97
    assert cambricon.collect_telemetry(device(2)) is None


def test_a_rank_reads_its_own_device(cnmon, monkeypatch):
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "1,0")
    assert cambricon.collect_telemetry(device(0)).memory_used_gib == 4
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "00000000-0000-0000-0000-b0")
    assert cambricon.collect_telemetry(device(0)).memory_used_gib == 4
    assert cambricon.collect_telemetry(device(1)) is None


def test_the_table_alone_has_everything_too(tells, sample):
    tells(telemetry.TABLE, sample("cnmon_5.10.13.txt"))
    assert cambricon.collect_telemetry(device(1)) == TelemetryReading(
        power_w=106, temperature_c=39, utilisation_percent=0, memory_used_gib=0
    )


def test_the_file_alone_has_no_power(tells, sample):
    tells(telemetry.INFO, sample("cnmon_info.json"))
    assert cambricon.collect_telemetry(device(0)) == TelemetryReading(
        temperature_c=32, utilisation_percent=98, memory_used_gib=2
    )


def test_a_masked_table_is_read_as_far_as_it_goes(tells, sample):
    tells(telemetry.TABLE, sample("cnmon_5.10.31.txt"))
    assert cambricon.collect_telemetry(device(0)) == TelemetryReading(
        power_w=105, temperature_c=35, utilisation_percent=0, memory_used_gib=0
    )


def test_a_value_that_the_tool_does_not_know_is_unknown(tells, sample):
    told = json.loads(sample("cnmon_info.json"))
    told["CnmonInfo"][1] = {"CardNum": 0, "ProductName": "MLU590-M9", "Temperature": {"Chip": "N/A"}}
    tells(telemetry.INFO, json.dumps(told))
    assert cambricon.collect_telemetry(device(0)) == TelemetryReading()


@pytest.mark.parametrize("output", ["", "{", "[]", '{"CnmonInfo": 3}', '{"CnmonInfo": [{}]}', '{"Other": []}'])
def test_a_file_that_is_not_the_tool_s_tells_nothing(tells, output):
    tells(telemetry.INFO, output)
    assert cambricon.collect_telemetry(device(0)) is None


def test_the_tool_writes_its_file_into_a_folder_of_its_own(monkeypatch, tmp_path):
    folder, here = tmp_path / "bin", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    tool = folder / "cnmon"
    tool.write_text(
        '#!/bin/sh\n[ "$*" = "info -e -m -u -j" ] && printf \'{"CnmonInfo": []}\' > cnmon_info.json\n',
        encoding="utf-8",
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(here)
    assert type(telemetry.INFO).read(telemetry.INFO) == '{"CnmonInfo": []}'
    assert list(here.iterdir()) == []


def test_the_driver_s_version_is_in_the_table_s_head(cnmon, tells):
    assert telemetry.driver_version() == "5.10.13"
    tells(telemetry.TABLE, None)
    assert telemetry.driver_version() is None


# --- environment of the workers -------------------------------------------------------------------------------


def test_workers_share_the_cores(make_plan, monkeypatch):
    monkeypatch.setattr(cambricon, "usable_cores", lambda: 64)
    assert cambricon.launch_env(make_plan(per_node=8)) == {"OMP_NUM_THREADS": "8"}
