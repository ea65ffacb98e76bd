"""torch's side of the MetaX plugin, on a torch that is told it is MetaX's: its CUDA is MACA."""

import os
from types import SimpleNamespace

import pytest

from core.errors import DeviceError
from core.notices import RecordWarning
from core.plugins import load_alone
from plugins import metax
from plugins.metax import telemetry
from schemas.chip import TelemetryReading

torch = pytest.importorskip("torch")

GIB = 1024**3


@pytest.fixture
def vendor():
    from core import defaults

    return load_alone("metax", "accelmark", defaults)


@pytest.fixture
def maca(monkeypatch, tells, restore_math_mode):
    """Two C500 as MetaX's torch 2.6 shows them; the cards that were selected."""
    selected = []
    monkeypatch.setenv(metax.TF32_SWITCH, "so that it is put back")
    monkeypatch.delenv(metax.TF32_SWITCH)
    monkeypatch.delenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", raising=False)
    monkeypatch.setattr(torch, "__version__", "2.6.0+metax3.2.1.3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "MetaX C500")
    monkeypatch.setattr(telemetry, "mxsml", lambda: None)
    tells(telemetry.SMI, None)
    return selected


@pytest.fixture
def taken(vendor, make_plan, maca):
    """The first rank's device."""
    return vendor.init_device(make_plan(chip="C500"), 0)


def init(make_plan, local_rank=0, **plan):
    return metax.init_device(make_plan(**({"chip": "C500"} | plan)), local_rank)


# --- init_device ----------------------------------------------------------------------------------------------


def test_a_rank_takes_its_own_card(vendor, make_plan, maca):
    device = vendor.init_device(make_plan(chip="C500"), 1)
    assert maca == [1]
    assert (device.torch_device, device.type, device.index) == ("cuda:1", "cuda", 1)
    assert (device.name, device.collective_backend, device.emulated) == ("MetaX C500", "nccl", False)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "amp", "fp16", "bf16"])
def test_tf32_is_on_for_tf32_alone(make_plan, maca, precision):
    torch.backends.cudnn.allow_tf32 = True
    mode = init(make_plan, precision=precision).math_mode
    on = precision == "tf32"
    assert torch.backends.cuda.matmul.allow_tf32 is on
    assert torch.backends.cudnn.allow_tf32 is on
    assert os.environ["METAX_USE_TF32"] == str(int(on))
    assert mode == {
        "float32_matmul_precision": "high" if on else "highest",
        "cudnn_allow_tf32": str(on),
        "METAX_USE_TF32": str(int(on)),
    }


def test_a_switch_of_the_user_s_that_goes_against_the_plan_is_refused(make_plan, maca, monkeypatch):
    monkeypatch.setenv("METAX_USE_TF32", "1")
    with pytest.raises(DeviceError, match="METAX_USE_TF32=1 goes against precision bf16") as error:
        init(make_plan)
    assert error.value.fix == "unset it: AccelMark sets METAX_USE_TF32=0 for this plan"
    assert init(make_plan, precision="tf32").math_mode["METAX_USE_TF32"] == "1"


def test_a_switch_of_torch_s_that_does_not_move_is_an_error(make_plan, maca, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=True))
    with pytest.raises(DeviceError, match=r"matmul\.allow_tf32 stays True") as error:
        init(make_plan)
    assert error.value.fix == "unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"


def test_another_torch_is_a_device_error(make_plan, maca, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.6.0+cu124")
    with pytest.raises(DeviceError, match=r"torch 2\.6\.0\+cu124 is not MetaX's build") as error:
        init(make_plan)
    assert "+metax" in error.value.fix


def test_maca_s_version_is_stated_by_torch_or_marked_in_its_own(maca, monkeypatch):
    assert metax.maca_version() == "3.2.1.3"
    monkeypatch.setattr(torch.version, "maca", "3.5.3.9", raising=False)
    assert metax.maca_version() == "3.5.3.9"


def test_a_torch_that_is_too_old_is_a_device_error(make_plan, maca, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.1.2+metax2.33")
    with pytest.raises(DeviceError, match=r"MetaX's torch 2\.1\.2\+metax2\.33 is older than 2\.6") as error:
        init(make_plan)
    assert "2.8" in error.value.fix


def test_a_series_that_nobody_has_tried_runs_with_a_notice(make_plan, maca, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.0+metax4.0")
    with pytest.warns(RecordWarning, match=r"MetaX's torch 2\.10\.0\+metax4\.0: nobody has reported"):
        init(make_plan)


@pytest.mark.parametrize("available", [True, False])
def test_more_ranks_than_cards_is_a_device_error(make_plan, maca, monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    seen = 2 if available else 0
    with pytest.raises(DeviceError, match=f"local rank 2 has no card: torch sees {seen}") as error:
        init(make_plan, 2)
    assert "MACA_VISIBLE_DEVICES" in error.value.fix
    assert maca == []


@pytest.mark.parametrize("name", ["MetaX C550", "MetaX N260"])
def test_a_card_that_is_not_the_planned_chip_is_refused(make_plan, maca, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    with pytest.raises(DeviceError, match=f"the plan is for C500, but cuda:0 is '{name}'"):
        init(make_plan)


def test_an_older_driver_s_name_is_the_same_chip(make_plan, maca, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "MXC500")
    assert init(make_plan).name == "MXC500"


# --- engines --------------------------------------------------------------------------------------------------


def test_deepspeed_is_told_to_take_cuda_and_others_nothing(make_plan, maca, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "so that it is put back")
    monkeypatch.delenv("DS_ACCELERATOR")
    for engine in ("torch", "megatron"):
        metax.prepare_engine(make_plan(engine=engine))
        assert "DS_ACCELERATOR" not in os.environ
    metax.prepare_engine(make_plan(engine="deepspeed"))
    assert os.environ["DS_ACCELERATOR"] == "cuda"


def test_the_optimizer_stays_torch_s(vendor, make_plan, maca):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    device = init(make_plan)
    assert vendor.optimizer_wrap(optimizer, torch.nn.Linear(1, 1), make_plan(), device) is optimizer


# --- what is measured and recorded ----------------------------------------------------------------------------


def test_the_device_wide_peak_is_added_to_core_s_reading(vendor, taken, monkeypatch):
    stats = {
        "allocated_bytes.all.peak": 20 * GIB,
        "reserved_bytes.all.peak": 25 * GIB,
        "reserved_bytes.all.current": 24 * GIB,
    }
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda _: stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (34 * GIB, 64 * GIB))
    reading = vendor.collect_memory(taken)
    assert (reading.peak_allocated_gib, reading.peak_device_gib, reading.capacity_gib) == (20, 31, 64)


def test_the_environment_names_maca_driver_and_libraries(vendor, taken, tells, sample, monkeypatch):
    tells(telemetry.SMI, sample("mx_smi_2.2.4.txt"))
    monkeypatch.setattr(torch.cuda, "nccl", SimpleNamespace(version=lambda: (2, 16, 5)))
    monkeypatch.setenv("MACA_MPS_MODE", "1")
    described = vendor.describe_environment(taken)
    expected = {
        "gpu": "MetaX C500", "maca": "3.2.1.3", "mccl": "2.16.5", "metax_driver": "2.15.9",
        "maca_system": "2.32.0.6", "env MACA_MPS_MODE": "1", "env METAX_USE_TF32": "0",
    }  # fmt: skip
    assert described.items() >= expected.items()


def test_telemetry_is_of_the_rank_s_card(vendor, make_plan, maca, tells, sample):
    tells(telemetry.SMI, sample("mx_smi_2.2.4.txt"))
    device = vendor.init_device(make_plan(chip="C500"), 1)
    assert vendor.collect_telemetry(device) == TelemetryReading(
        power_w=54, temperature_c=30, utilisation_percent=0, memory_used_gib=858 / 1024
    )
