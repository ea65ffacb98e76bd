"""torch's side of the Moore Threads plugin, on a torch that is told it has torch_musa."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from core.errors import DeviceError
from core.notices import RecordWarning
from core.plugins import load_alone
from plugins import torch_musa
from plugins.torch_musa import telemetry
from schemas.chip import TelemetryReading

torch = pytest.importorskip("torch")

GIB = 1024**3


class StuckSwitch:
    """A muDNN whose TF32 cannot be switched."""

    allow_tf32 = property(lambda self: True, lambda self, value: None)


@pytest.fixture
def vendor():
    from core import defaults

    return load_alone("torch_musa", "accelmark", defaults)


@pytest.fixture
def installed(monkeypatch):
    """``installed(version)``: torch_musa's distribution has that version; None takes it away."""

    def let(version):
        monkeypatch.setattr(
            torch_musa, "installed_version", lambda *names: version if "torch_musa" in names else None
        )

    return let


@pytest.fixture
def musa(monkeypatch, put_torch_module, installed, tells, restore_math_mode):
    """Two S4000 as torch_musa 2.7 for torch 2.7 shows them."""
    package, optim = ModuleType("torch_musa"), ModuleType("torch_musa.optim")
    optim.FusedAdamW = FusedAdamW
    monkeypatch.setitem(sys.modules, "torch_musa", package)
    monkeypatch.setitem(sys.modules, "torch_musa.optim", optim)
    monkeypatch.setattr(torch, "__version__", "2.7.1")
    installed("2.7.1")
    mudnn = SimpleNamespace(allow_tf32=True, version=lambda: 3100)
    monkeypatch.setattr(torch.backends, "mudnn", mudnn, raising=False)
    tells(telemetry.GMI, None)
    monkeypatch.setattr(telemetry, "mtml", lambda: None)
    return put_torch_module("musa")


class FusedAdamW(torch.optim.Optimizer):
    """As torch_musa's takes what a plan sets."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), *, eps=1e-8, weight_decay=1e-2):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})


@pytest.fixture
def taken(vendor, make_plan, musa):
    """The first rank's device."""
    return vendor.init_device(make_plan(chip="S4000"), 0)


def init(make_plan, local_rank=0, **plan):
    return torch_musa.init_device(make_plan(**({"chip": "S4000"} | plan)), local_rank)


# --- init_device ----------------------------------------------------------------------------------------------


def test_a_rank_takes_its_own_card(vendor, make_plan, musa):
    device = vendor.init_device(make_plan(chip="S4000"), 1)
    assert musa.selected == [1]
    assert (device.torch_device, device.type, device.index) == ("musa:1", "musa", 1)
    assert (device.name, device.collective_backend, device.emulated) == ("MTT S4000", "mccl", False)


def test_core_marks_an_emulated_device(vendor, make_plan, musa):
    musa.__emulated__ = True
    assert vendor.init_device(make_plan(chip="S4000"), 0).emulated


@pytest.mark.parametrize("precision", ["fp32", "tf32", "amp", "fp16", "bf16"])
@pytest.mark.parametrize("was", [True, False])
def test_tf32_is_on_for_tf32_alone(make_plan, musa, precision, was):
    torch.backends.mudnn.allow_tf32 = was
    mode = init(make_plan, precision=precision, attention="eager").math_mode
    on = precision == "tf32"
    assert torch.backends.mudnn.allow_tf32 is on
    assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
    assert mode == {"mudnn_allow_tf32": str(on), "float32_matmul_precision": "high" if on else "highest"}


def test_a_switch_that_does_not_move_is_an_error(make_plan, musa, monkeypatch):
    monkeypatch.setattr(torch.backends, "mudnn", StuckSwitch())
    init(make_plan, precision="tf32", attention="eager")
    with pytest.raises(DeviceError, match=r"mudnn\.allow_tf32 stays True"):
        init(make_plan)


@pytest.mark.parametrize("missing", [ImportError("libmusart.so.4: cannot open"), RuntimeError("no MUSA driver")])
def test_a_torch_musa_that_does_not_load_is_a_device_error(make_plan, musa, monkeypatch, missing):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torch_musa":
                raise missing

    monkeypatch.delitem(sys.modules, "torch_musa")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(DeviceError, match=f"torch_musa does not load: {missing}") as error:
        init(make_plan)
    assert "LD_LIBRARY_PATH" in error.value.fix
    assert error.value.exit_code == 3


def test_a_torch_musa_for_another_torch_is_a_device_error(make_plan, musa, installed):
    installed("2.9.0")
    with pytest.raises(DeviceError, match=r"torch_musa 2\.9\.0 is not for torch 2\.7\.1"):
        init(make_plan)


def test_a_torch_musa_that_is_too_old_is_a_device_error(make_plan, musa, installed):
    installed("2.5.0")
    with pytest.raises(DeviceError, match=r"torch_musa 2\.5\.0 is older than 2\.7, which is the first for"):
        init(make_plan)


def test_a_series_that_nobody_has_tried_runs_with_a_notice(make_plan, musa, installed, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    installed("2.8.0")
    with pytest.warns(RecordWarning, match=r"torch_musa 2\.8\.0: nobody has reported this series to work"):
        init(make_plan)


def test_a_torch_musa_without_metadata_is_taken_as_it_is(make_plan, musa, installed):
    installed(None)
    assert init(make_plan).index == 0


@pytest.mark.parametrize("cards", [0, 2])
def test_more_ranks_than_cards_is_a_device_error(make_plan, musa, cards):
    musa.cards = cards
    with pytest.raises(DeviceError, match=f"local rank 2 has no card: torch_musa sees {cards}") as error:
        init(make_plan, 2)
    assert "MUSA_VISIBLE_DEVICES" in error.value.fix
    assert musa.selected == []


@pytest.mark.parametrize("name", ["MTT S5000", "MTT S80"])
def test_a_card_that_is_not_the_planned_chip_is_refused(make_plan, musa, name):
    musa.name = name
    with pytest.raises(DeviceError, match=f"the plan is for S4000, but musa:0 is '{name}'") as error:
        init(make_plan)
    assert "config" in error.value.fix


@pytest.mark.parametrize("precision", ["bf16", "amp"])
def test_a_card_without_bf16_is_refused_where_the_plan_computes_in_it(make_plan, musa, precision):
    musa.bf16 = False
    with pytest.raises(DeviceError, match="MTT S4000 computes no bf16") as error:
        init(make_plan, precision=precision)
    assert "fp16" in error.value.fix
    assert init(make_plan, precision="fp16").index == 0


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"precision": "fp32"}, "no flash attention for fp32 and heads of 128"),
        ({"precision": "tf32"}, "no flash attention for tf32"),
        ({"precision": "bf16", "head_size": 160}, "heads of 160"),
    ],
)
def test_attention_without_a_flash_kernel_is_told(make_plan, musa, plan, told):
    with pytest.warns(RecordWarning, match=told):
        init(make_plan, **plan)


@pytest.mark.parametrize("plan", [{"precision": "bf16"}, {"precision": "fp32", "attention": "eager"}])
def test_attention_as_expected_needs_no_notice(make_plan, musa, plan):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init(make_plan, **plan)


# --- prepare_engine -------------------------------------------------------------------------------------------


def test_deepspeed_gets_an_accelerator_for_the_card(make_plan, musa, fake_deepspeed, monkeypatch):
    ours = ModuleType("core.engines.deepspeed_accelerator")
    ours.CudaShapedAccelerator = lambda *arguments: arguments
    monkeypatch.setitem(sys.modules, ours.__name__, ours)
    device = init(make_plan, 1)
    torch_musa.prepare_engine(make_plan(engine="deepspeed"), device)
    assert fake_deepspeed == [(device, "MUSA_VISIBLE_DEVICES")]


@pytest.fixture
def stood_in(monkeypatch):
    """Devices that were made to stand in for CUDA."""
    from core.engines.megatron import facade

    devices = []
    monkeypatch.setattr(facade, "install", devices.append)
    monkeypatch.setattr(torch, "device", str)  # torch takes "musa:1" only with the real torch_musa
    return devices


def test_the_card_stands_in_for_cuda_in_megatron(make_plan, musa, stood_in):
    torch_musa.prepare_engine(make_plan(engine="megatron"), init(make_plan, 1))
    assert stood_in == ["musa:1"]


def test_the_torch_engine_needs_no_preparation(make_plan, musa, stood_in):
    torch_musa.prepare_engine(make_plan(engine="torch"), init(make_plan))
    assert stood_in == []


# --- optimizer_wrap -------------------------------------------------------------------------------------------


def weights():
    return [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))]


def adamw():
    decayed, plain = weights()
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-6)


def test_torch_s_adamw_is_replaced_by_the_fused_one_with_the_same_settings(make_plan, musa):
    given = adamw()
    taken = torch_musa.optimizer_wrap(given, make_plan())
    assert type(taken) is FusedAdamW
    for before, after in zip(given.param_groups, taken.param_groups, strict=True):
        assert all(a is b for a, b in zip(before["params"], after["params"], strict=True))
        assert (after["lr"], after["betas"], after["eps"]) == (3e-4, (0.9, 0.95), 1e-6)
        assert after["weight_decay"] == before["weight_decay"]


class OwnAdamW(torch.optim.AdamW):
    """Somebody's own."""


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, OwnAdamW])
def test_other_optimizers_stay(make_plan, musa, kind):
    assert torch_musa.optimizer_wrap(kind(weights(), lr=1e-3), make_plan()) is None


def test_states_on_the_host_stay_torch_s(make_plan, musa):
    assert torch_musa.optimizer_wrap(adamw(), make_plan(offload="optimizer")) is None


def test_without_the_fused_one_torch_s_steps_and_the_record_says_so(make_plan, musa, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_musa.optim", None)
    with pytest.warns(RecordWarning, match="torch_musa's fused AdamW does not load"):
        assert torch_musa.optimizer_wrap(adamw(), make_plan()) is None


# --- what is measured and recorded ----------------------------------------------------------------------------


def test_the_device_wide_peak_is_added_to_core_s_reading(vendor, taken):
    reading = vendor.collect_memory(taken)
    assert (reading.peak_allocated_gib, reading.peak_reserved_gib, reading.capacity_gib) == (20, 25, 48)
    assert reading.peak_device_gib == 31  # 30 used now, and 1 that the allocator has given back
    assert (reading.allocation_retries, reading.oom_count) == (0, 0)


def test_the_environment_names_driver_toolkit_and_libraries(vendor, taken, tells, sample, monkeypatch):
    torch.get_device_module("musa").mccl = SimpleNamespace(version=lambda: (2, 11, 4))
    monkeypatch.setattr(torch.version, "musa", "4.2.0", raising=False)
    monkeypatch.setenv("MUSA_BLOCK_SCHEDULE_MODE", "1")
    monkeypatch.setenv("MUSA_SECRET", "no")
    tells(telemetry.GMI, sample("mthreads_gmi_s4000.json"))
    described = vendor.describe_environment(taken)
    expected = {
        "gpu": "MTT S4000", "torch_musa": "2.7.1", "musa": "4.2.0", "mudnn": "3100", "mccl": "2.11.4",
        "musa_capability": "2.2", "mthreads_driver": "2.7.0", "env MUSA_BLOCK_SCHEDULE_MODE": "1",
    }  # fmt: skip
    assert described.items() >= expected.items()
    assert "no" not in described.values()


def test_what_torch_musa_does_not_tell_is_left_out(vendor, taken):
    described = vendor.describe_environment(taken)
    assert "mccl" not in described
    assert "mthreads_driver" not in described


def test_telemetry_is_of_the_rank_s_card(vendor, make_plan, musa, tells, sample):
    tells(telemetry.GMI, sample("mthreads_gmi_s5000.json"))
    device = vendor.init_device(make_plan(chip="S4000"), 1)
    assert vendor.collect_telemetry(device) == TelemetryReading(
        power_w=97.09, temperature_c=26, utilisation_percent=0, memory_used_gib=0
    )
