"""torch's side of the Cambricon plugin, on a torch that is told it has torch_mlu."""

import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from core import notices
from core.errors import DeviceError
from core.events import EventLog, read_events
from core.notices import RecordWarning
from core.plugins import load_alone
from plugins import cambricon
from plugins.cambricon import telemetry
from schemas.chip import TelemetryReading
from schemas.event import WarningEvent

torch = pytest.importorskip("torch")


class StuckSwitch:
    """One whose TF32 cannot be switched off."""

    allow_tf32 = property(lambda self: True, lambda self, value: None)


@pytest.fixture
def vendor():
    from core import defaults

    return load_alone("cambricon", "accelmark", defaults)


@pytest.fixture
def installed(monkeypatch):
    """``installed(version)``: torch_mlu's distribution has that version; None takes it away."""

    def let(version):
        monkeypatch.setattr(
            cambricon, "installed_version", lambda *names: version if "torch_mlu" in names else None
        )

    return let


@pytest.fixture
def mlu(monkeypatch, put_torch_module, installed, tells, restore_math_mode):
    """Two MLU590 as torch_mlu 1.29 for torch 2.7 shows them."""
    package, submodule = ModuleType("torch_mlu"), ModuleType("torch_mlu.mlu")
    submodule.cncl = SimpleNamespace(version=lambda: (1, 30, 8))
    monkeypatch.setitem(sys.modules, "torch_mlu", package)
    monkeypatch.setitem(sys.modules, "torch_mlu.mlu", submodule)
    monkeypatch.setattr(torch, "__version__", "2.7.1+cpu")
    installed("1.29.2+torch2.7.1")
    switches = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False), custom=SimpleNamespace(allow_tf32=False))
    monkeypatch.setattr(torch.backends, "mlu", switches, raising=False)
    monkeypatch.setattr(torch.backends, "cnnl", SimpleNamespace(allow_tf32=True), raising=False)
    tells(telemetry.INFO, None)
    tells(telemetry.TABLE, None)
    yield put_torch_module("mlu", name="MLU590-M9")
    notices._watched.clear()


@pytest.fixture
def taken(vendor, make_plan, mlu):
    """The first rank's device."""
    return vendor.init_device(make_plan(chip="MLU590"), 0)


def init(make_plan, local_rank=0, **plan):
    return cambricon.init_device(make_plan(**({"chip": "MLU590"} | plan)), local_rank)


# --- init_device ----------------------------------------------------------------------------------------------


def test_a_rank_takes_its_own_device(vendor, make_plan, mlu):
    device = vendor.init_device(make_plan(chip="MLU590"), 1)
    assert mlu.selected == [1]
    assert (device.torch_device, device.type, device.index) == ("mlu:1", "mlu", 1)
    assert (device.name, device.collective_backend, device.emulated) == ("MLU590-M9", "cncl", False)


def test_core_marks_an_emulated_device(vendor, make_plan, mlu):
    mlu.__emulated__ = True
    assert vendor.init_device(make_plan(chip="MLU590"), 0).emulated


@pytest.mark.parametrize("precision", ["fp32", "tf32", "amp", "fp16", "bf16"])
@pytest.mark.parametrize("was", [True, False])
def test_all_of_tf32_is_on_for_tf32_alone(make_plan, mlu, precision, was):
    backends = torch.backends
    switches = (backends.mlu.matmul, backends.cnnl, backends.mlu.custom)
    for switch in switches:
        switch.allow_tf32 = was
    on = precision == "tf32"
    assert init(make_plan, precision=precision).math_mode == {
        "float32_matmul_precision": "high" if on else "highest",
        "mlu_matmul_allow_tf32": str(on),
        "cnnl_allow_tf32": str(on),
        "mlu_custom_allow_tf32": str(on),
    }
    assert [switch.allow_tf32 for switch in switches] == [on] * 3
    assert torch.get_float32_matmul_precision() == ("high" if on else "highest")


def test_a_switch_that_does_not_move_is_an_error(make_plan, mlu, monkeypatch):
    monkeypatch.setattr(torch.backends.mlu, "matmul", StuckSwitch())
    assert init(make_plan, precision="tf32").index == 0
    with pytest.raises(DeviceError, match=r"mlu_matmul\.allow_tf32 stays True") as error:
        init(make_plan)
    assert error.value.fix == "unset TORCH_ALLOW_TF32_CNMATMUL_OVERRIDE"


@pytest.mark.parametrize("missing", [ImportError("libcnrt.so: cannot open"), RuntimeError("no driver")])
def test_a_torch_mlu_that_does_not_load_is_a_device_error(make_plan, mlu, monkeypatch, missing):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torch_mlu":
                raise missing

    monkeypatch.delitem(sys.modules, "torch_mlu")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DeviceError, match=f"torch_mlu does not load: {missing}") as error:
        init(make_plan)
    assert "NEUWARE_HOME" in error.value.fix


def test_a_torch_mlu_for_another_torch_is_a_device_error(make_plan, mlu, installed):
    installed("1.30.2+torch2.9.1")
    with pytest.raises(DeviceError, match=r"torch_mlu 1\.30\.2\+torch2\.9\.1 is not for torch 2\.7\.1") as error:
        init(make_plan)
    assert error.value.fix == "install torch 2.9.1 beside it"


def test_a_torch_mlu_that_is_too_old_is_a_device_error(make_plan, mlu, installed):
    installed("1.22.1+torch2.5.0")
    with pytest.raises(DeviceError, match=r"torch_mlu 1\.22\.1\+torch2\.5\.0 is older than 1\.25"):
        init(make_plan)


def test_a_series_that_nobody_has_tried_runs_with_a_notice(make_plan, mlu, installed):
    installed("1.27.0+torch2.7.1")
    with pytest.warns(RecordWarning, match=r"torch_mlu 1\.27\.0\+torch2\.7\.1: nobody has reported"):
        init(make_plan)


@pytest.mark.parametrize("version", [None, "1.29.2"])
def test_a_torch_mlu_that_names_no_torch_is_taken_as_it_is(make_plan, mlu, installed, version):
    installed(version)
    assert init(make_plan).index == 0


@pytest.mark.parametrize("cards", [0, 2])
def test_more_ranks_than_devices_is_a_device_error(make_plan, mlu, cards):
    mlu.cards = cards
    with pytest.raises(DeviceError, match=f"local rank 2 has no MLU: torch_mlu sees {cards}") as error:
        init(make_plan, 2)
    assert "MLU_VISIBLE_DEVICES" in error.value.fix
    assert mlu.selected == []


def test_a_device_that_is_not_the_planned_chip_is_refused(make_plan, mlu):
    mlu.name = "MLU370-X8"
    with pytest.raises(DeviceError, match="the plan is for MLU590, but mlu:0 is 'MLU370-X8'"):
        init(make_plan)


@pytest.mark.parametrize("name", ["MLU370-X8", "MLU590-M9", "MLU370-X4"])
def test_any_mlu_runs_a_plan_for_the_unnamed_chip(make_plan, mlu, name):
    mlu.name = name
    assert init(make_plan, chip="MLU").name == name


def test_a_device_without_bf16_is_refused_where_the_plan_computes_in_it(make_plan, mlu):
    mlu.bf16 = False
    with pytest.raises(DeviceError, match="MLU590-M9 computes no bf16"):
        init(make_plan)
    assert init(make_plan, precision="fp16").index == 0


# --- operators that run on the host ---------------------------------------------------------------------------

FALLBACK = (
    "The operator 'aten::histc' is not currently supported on the MLU backend and will fall back to run on the "
    "CPU. This may have performance implications."
)
"""As torch_mlu says it, once an operator."""


def test_an_operator_that_is_computed_on_the_host_is_told_in_the_record(make_plan, mlu, tmp_path):
    log = EventLog(tmp_path, 0)
    with warnings.catch_warnings(record=True), notices.recorded(log):
        init(make_plan)
        for message in (FALLBACK, FALLBACK, "torch_mlu: something else"):
            warnings.warn(message, UserWarning, stacklevel=1)
    log.close()
    told = [event.message for event in read_events(tmp_path) if isinstance(event, WarningEvent)]
    assert told == [FALLBACK]


# --- prepare_engine -------------------------------------------------------------------------------------------


def test_deepspeed_gets_its_own_accelerator_for_mlus(make_plan, mlu, fake_deepspeed):
    cambricon.prepare_engine(make_plan(engine="deepspeed"), init(make_plan))
    assert os.environ["DS_ACCELERATOR"] == "mlu"
    assert [type(accelerator).__name__ for accelerator in fake_deepspeed] == ["MLU_Accelerator"]


@pytest.mark.deepspeed
def test_deepspeed_has_such_an_accelerator():
    deepspeed = find_spec("deepspeed")
    if deepspeed is None:
        pytest.skip("needs DeepSpeed")
    file = Path(deepspeed.origin).parent / "accelerator" / "mlu_accelerator.py"
    assert "class MLU_Accelerator(DeepSpeedAccelerator)" in file.read_text(encoding="utf-8")


@pytest.fixture
def stood_in(monkeypatch):
    """Devices that were made to stand in for CUDA."""
    from core.engines.megatron import facade

    devices = []
    monkeypatch.setattr(facade, "install", devices.append)
    monkeypatch.setattr(torch, "device", str)  # torch takes "mlu:1" only with the real torch_mlu
    return devices


def test_the_device_stands_in_for_cuda_in_megatron(make_plan, mlu, stood_in):
    cambricon.prepare_engine(make_plan(engine="megatron"), init(make_plan, 1))
    assert stood_in == ["mlu:1"]


def test_the_torch_engine_needs_no_preparation(make_plan, mlu, stood_in):
    cambricon.prepare_engine(make_plan(engine="torch"), init(make_plan))
    assert stood_in == []


# --- what is measured and recorded ----------------------------------------------------------------------------


def test_the_device_wide_peak_is_added_to_core_s_reading(vendor, taken):
    reading = vendor.collect_memory(taken)
    assert (reading.peak_allocated_gib, reading.peak_device_gib, reading.capacity_gib) == (20, 31, 48)


def test_the_environment_names_driver_and_libraries(vendor, taken, tells, sample, monkeypatch):
    tells(telemetry.TABLE, sample("cnmon_5.10.13.txt"))
    monkeypatch.setenv("CNCL_MLU_DIRECT_LEVEL", "2")
    described = vendor.describe_environment(taken)
    assert described == {
        "gpu": "MLU590-M9", "torch_mlu": "1.29.2+torch2.7.1", "cncl": "1.30.8", "mlu_capability": "2.2",
        "cambricon_driver": "5.10.13", "env CNCL_MLU_DIRECT_LEVEL": "2",
    }  # fmt: skip


def test_telemetry_is_of_the_rank_s_device(vendor, make_plan, mlu, tells, sample):
    tells(telemetry.TABLE, sample("cnmon_5.10.13.txt"))
    tells(telemetry.INFO, sample("cnmon_info.json"))
    device = vendor.init_device(make_plan(chip="MLU590"), 1)
    assert vendor.collect_telemetry(device) == TelemetryReading(
        power_w=106, temperature_c=39, utilisation_percent=97, memory_used_gib=4
    )
