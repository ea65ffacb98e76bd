"""A vendor's hooks as core calls them: over core's defaults, answers checked, and whose fault an error is."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from core import hookimpl, plugins
from core.errors import AccelMarkError, DeviceError, UsageError
from schemas.chip import ChipSpec, Device, MemoryReading, ProbeResult

DEVICE = Device(torch_device="acme:0", index=0, name="X1", collective_backend="accl", math_mode={})
X1 = ChipSpec(name="X1", vendor="acme", memory_gb=64, memory_source="datasheet", peaks=())


@hookimpl(trylast=True)
def core_build_model(case):
    return ["core's", case]


@hookimpl(trylast=True)
def core_collect_memory():
    return MemoryReading(peak_allocated_gib=1, peak_reserved_gib=2, peak_device_gib=None, capacity_gib=64)


DEFAULTS = SimpleNamespace(build_model=core_build_model, collect_memory=core_collect_memory)


def vendor_of(**hooks):
    """A vendor whose plugin has just these hooks, over core's defaults."""
    module = ModuleType("acme")
    module.ACCELMARK_HOOK_API = 1
    for name, hook in hooks.items():
        hook.__name__ = name
        setattr(module, name, hook)
    return plugins.Vendor("acme", "acme-accelmark", module, defaults=DEFAULTS)


def build(vendor):
    return vendor.build_model("case", "plan", DEVICE, 0)


def test_the_default_serves_where_the_vendor_leaves_a_hook_out():
    assert build(vendor_of()) == ["core's", "case"]
    assert vendor_of().collect_memory(DEVICE).peak_reserved_gib == 2


def test_the_vendor_wins_over_the_default():
    @hookimpl
    def build_model(stage):
        return f"vendor's stage {stage}"

    assert build(vendor_of(build_model=build_model)) == "vendor's stage 0"


def test_a_vendor_that_answers_none_leaves_it_to_the_default():
    @hookimpl
    def build_model():
        return None

    assert build(vendor_of(build_model=build_model)) == ["core's", "case"]


def test_a_wrapper_decorates_the_default():
    @hookimpl(wrapper=True)
    def build_model(device):
        model = yield
        return [*model, f"decorated on {device.torch_device}"]

    assert build(vendor_of(build_model=build_model)) == ["core's", "case", "decorated on acme:0"]


def test_core_keeps_its_optimizer_when_the_vendor_has_none():
    assert vendor_of().optimizer_wrap("core's", "model", "plan", DEVICE) == "core's"

    @hookimpl
    def optimizer_wrap(optimizer):
        return f"fused {optimizer}"

    wrapped = vendor_of(optimizer_wrap=optimizer_wrap).optimizer_wrap("core's", "model", "plan", DEVICE)
    assert wrapped == "fused core's"


def test_what_is_not_implemented_is_empty():
    vendor = vendor_of()
    assert vendor.probe() == ()
    assert vendor.hardware_configs(None) == ()
    assert vendor.launch_env(None) == {}
    assert vendor.collect_telemetry(DEVICE) is None
    assert vendor.describe_environment(DEVICE) == {}
    assert vendor.prepare_engine(None, DEVICE) is None


def test_required_hooks_are_asked_for_by_name():
    with pytest.raises(DeviceError, match="'acme' sets up no device") as error:
        vendor_of().init_device(None, 0)
    assert "`init_device`" in error.value.fix
    with pytest.raises(DeviceError, match="'acme' lists no chips"):
        _ = vendor_of().chips


@pytest.mark.parametrize("emulated", [True, False])
def test_an_emulated_device_is_marked_whatever_its_plugin_says(emulated, monkeypatch):
    module = SimpleNamespace(__emulated__=True) if emulated else SimpleNamespace()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(acme=module))

    @hookimpl
    def init_device():
        return DEVICE

    device = vendor_of(init_device=init_device).init_device(None, 0)
    assert device == DEVICE.model_copy(update={"emulated": emulated})


WRONG_ANSWERS = {
    "probe": ([{"chip": "X1"}], lambda v: v.probe()),
    "hardware_configs": ([7], lambda v: v.hardware_configs(None)),
    "launch_env": ({"ACCL_BUFFER_MIB": 64}, lambda v: v.launch_env(None)),
    "init_device": ("acme:0", lambda v: v.init_device(None, 0)),
    "collect_memory": (80.0, lambda v: v.collect_memory(DEVICE)),
    "collect_telemetry": ({"power_w": -1}, lambda v: v.collect_telemetry(DEVICE)),
    "describe_environment": (["3.1"], lambda v: v.describe_environment(DEVICE)),
}


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_an_answer_of_the_wrong_type_names_vendor_distribution_and_hook(name):
    answer, call = WRONG_ANSWERS[name]

    @hookimpl
    def hook():
        return answer

    with pytest.raises(DeviceError, match=rf"vendor 'acme' \(acme-accelmark\), hook {name}: ") as error:
        call(vendor_of(**{name: hook}))
    assert f"`{name}`" in error.value.fix


ASKED_BEFORE_ANY_WORKER = {
    "chips": lambda v: v.chips,
    "probe": lambda v: v.probe(),
    "hardware_configs": lambda v: v.hardware_configs(None),
    "tune": lambda v: v.tune(None, None, {}),
    "launch_env": lambda v: v.launch_env(None),
}


@pytest.mark.parametrize("name", ASKED_BEFORE_ANY_WORKER)
def test_a_hook_that_raises_in_the_launcher_is_told_as_its_plugins_fault(name):
    @hookimpl
    def hook():
        raise OSError("no driver")

    with pytest.raises(
        DeviceError, match=rf"vendor 'acme' \(acme-accelmark\), hook {name}: OSError: no driver"
    ) as e:
        ASKED_BEFORE_ANY_WORKER[name](vendor_of(**{name: hook}))
    assert e.value.fix == f"repair the plugin's `{name}`; --debug shows where it fails"


def test_what_a_hook_raises_in_a_worker_keeps_its_type():
    @hookimpl
    def init_device():
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        vendor_of(init_device=init_device).init_device(None, 0)


def test_an_error_that_a_hook_raises_comes_through_unchanged():
    problem = DeviceError("no device", "plug it in")

    @hookimpl
    def init_device():
        raise problem

    with pytest.raises(AccelMarkError) as error:
        vendor_of(init_device=init_device).init_device(None, 0)
    assert error.value is problem


def test_an_unknown_chip_is_refused_with_the_known_ones():
    @hookimpl
    def chips():
        return [X1]

    with pytest.raises(UsageError, match="'acme' knows no chip 'X2'") as error:
        vendor_of(chips=chips).chip("X2")
    assert error.value.fix == "use one of: X1"


def test_a_probe_result_can_name_an_unknown_device():
    @hookimpl
    def probe():
        return [ProbeResult(chip=None, device_name="ACME Y9", count=1)]

    assert vendor_of(probe=probe).probe()[0].chip is None
