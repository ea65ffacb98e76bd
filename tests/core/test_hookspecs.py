"""Every hook is documented with its exact signature, and works when it is called through the facade."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from core import HOOK_API_VERSION, HOOK_PROJECT, hookimpl, hookspecs
from core.errors import DeviceError
from core.plugins import Vendor
from schemas.case import HardwareConfig, Run
from schemas.chip import ChipSpec, Device, MemoryReading, Peak, ProbeResult, TelemetryReading
from schemas.units import Topology

DOCS = Path(__file__).resolve().parents[2] / "docs" / "hooks.md"
HOOKS = [
    name for name, value in vars(hookspecs).items() if getattr(value, f"{HOOK_PROJECT}_spec", None) is not None
]
NAMED = ["init_device", "build_model", "optimizer_wrap", "collect_memory"]


def signature(name: str) -> str:
    """The hook's definition on one line, annotations as the source has them."""
    found = inspect.signature(getattr(hookspecs, name))
    parameters = ", ".join(f"{p.name}: {p.annotation}" for p in found.parameters.values())
    return f"def {name}({parameters}) -> {found.return_annotation}"


def sections() -> dict[str, str]:
    """Second-level headings of the page and what stands under each."""
    parts = re.split(r"^## (.+)$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_promised_hooks_exist():
    assert set(NAMED) <= set(HOOKS)
    assert len(HOOKS) == 12


def test_the_page_documents_the_hooks_and_no_others_in_their_order():
    documented = [title for title in sections() if title.isidentifier()]
    assert documented == HOOKS


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_with_its_exact_signature(name):
    section = sections()[name]
    assert f"```python\n{signature(name)}\n```" in section
    side = re.search(r"- \*\*Side:\*\* (\w+)", section)
    assert side
    assert side[1] in ("launcher", "worker")
    assert side[1] in inspect.getdoc(getattr(hookspecs, name)).lower()
    assert "- **When:** " in section
    assert "- **None:** " in section
    assert re.search(rf"```python\n@hookimpl.*\ndef {name}\(", section), "an example"
    assert f"| [`{name}`](#{name}) | {side[1]} | " in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", HOOKS)
def test_a_docstring_has_an_example_that_implements_the_hook(name):
    doc = inspect.getdoc(getattr(hookspecs, name))
    example = doc.partition("Example::")[2]
    found = re.search(rf"@hookimpl.*\n\s+def {name}\((.*)\):", example)
    assert found, "an example of this hook"
    taken = [part.strip() for part in found[1].split(",") if part.strip()]
    assert taken == list(inspect.signature(getattr(hookspecs, name)).parameters)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_fully_typed(name):
    found = inspect.signature(getattr(hookspecs, name))
    annotations = [p.annotation for p in found.parameters.values()] + [found.return_annotation]
    assert inspect.Signature.empty not in annotations


# --- a plugin that implements them all ------------------------------------------------------------------------

CASE, PLAN, MODEL, OPTIMIZER = (SimpleNamespace(name=name) for name in ("case", "plan", "model", "optimizer"))
DEVICE = Device(torch_device="acme:1", index=1, name="X1", collective_backend="accl", math_mode={})
ANSWERS = {
    "chips": [ChipSpec(name="X1", vendor="acme", memory_gb=64, memory_source="datasheet", peaks=())],
    "probe": [ProbeResult(chip="X1", device_name="ACME X1", count=8)],
    "hardware_configs": [HardwareConfig(vendor="acme", topology="X1x1x8", engine="torch", runs=(Run(id="base"),))],
    "tune": {"compile": False},
    "launch_env": {"ACCL_BUFFER_MIB": "64"},
    "init_device": DEVICE,
    "prepare_engine": None,
    "build_model": MODEL,
    "optimizer_wrap": OPTIMIZER,
    "collect_memory": MemoryReading(peak_allocated_gib=1, peak_reserved_gib=2, peak_device_gib=3, capacity_gib=64),
    "collect_telemetry": TelemetryReading(power_w=300),
    "describe_environment": {"accl": "2.0"},
}
ARGUMENTS = {
    "chips": {},
    "probe": {},
    "hardware_configs": {"case": CASE},
    "tune": {
        "case": CASE,
        "topology": Topology(chip="X1", nodes=1, chips_per_node=8),
        "chosen": {"compile": True},
    },
    "launch_env": {"plan": PLAN},
    "init_device": {"plan": PLAN, "local_rank": 1},
    "prepare_engine": {"plan": PLAN, "device": DEVICE},
    "build_model": {"case": CASE, "plan": PLAN, "device": DEVICE, "stage": 2},
    "optimizer_wrap": {"optimizer": object(), "model": MODEL, "plan": PLAN, "device": DEVICE},
    "collect_memory": {"device": DEVICE},
    "collect_telemetry": {"device": DEVICE},
    "describe_environment": {"device": DEVICE},
}


def reference_plugin(calls: dict[str, dict[str, object]]) -> ModuleType:
    """A module that implements every hook, taking all of its arguments, and notes each call."""
    module = ModuleType("accelmark_acme")
    module.ACCELMARK_HOOK_API = HOOK_API_VERSION
    for name in HOOKS:
        parameters = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
        source = f"def {name}({parameters}):\n    calls[{name!r}] = dict(locals())\n    return answers[{name!r}]\n"
        scope = {"calls": calls, "answers": ANSWERS}
        exec(source, scope)
        setattr(module, name, hookimpl(scope[name]))
    return module


@pytest.mark.parametrize("name", HOOKS)
def test_the_facade_calls_the_hook_with_its_arguments_and_returns_its_answer(name):
    calls: dict[str, dict[str, object]] = {}
    vendor = Vendor("acme", "acme-accelmark", reference_plugin(calls))
    member = getattr(vendor, name)
    answer = member(**ARGUMENTS[name]) if callable(member) else member
    expected = ANSWERS[name]
    assert answer == (tuple(expected) if isinstance(expected, list) else expected)
    assert calls == {name: ARGUMENTS[name]}


# --- the page's examples ---------------------------------------------------------------------------------------


class FakeOptimizer:
    """Of torch's shape, and of the vendor's: groups, and settings by name."""

    def __init__(self, param_groups, **defaults):
        self.param_groups, self.defaults = param_groups, defaults


@pytest.fixture
def acme_software(monkeypatch) -> dict[str, object]:
    """What the examples import, and the names that they take for granted."""
    chosen: list[object] = []
    backend = SimpleNamespace(allow_tf32=True)
    modules = {
        "torch": {
            "acme": SimpleNamespace(
                device_count=lambda: 2, set_device=chosen.append, get_device_name=lambda index: f"ACME X1 #{index}"
            ),
            "backends": SimpleNamespace(acme=backend),
        },
        "torch_acme": {},
        "deepspeed": {},
        "deepspeed.accelerator": {"set_accelerator": chosen.append},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    stats = {"peak_allocated": 20 * 2**30, "peak_reserved": 25 * 2**30, "total": 64 * 2**30}
    return {
        "acml": SimpleNamespace(
            device_count=lambda: 8,
            power_mw=lambda _: 301_500,
            celsius=lambda _: 61,
            driver_version=lambda: "3.1.4",
        ),
        "torch_acme": SimpleNamespace(
            memory_stats=lambda _: stats,
            optim=SimpleNamespace(FusedAdamW=FakeOptimizer),
            accl=SimpleNamespace(version=lambda: "2.0"),
        ),
        "AcmeAccelerator": lambda: "the accelerator",
        "swap_attention": chosen.append,
        "chosen": chosen,
        "backend": backend,
    }


def example_plugin(name: str, given: dict[str, object]) -> Vendor:
    """A plugin that is the page's example of one hook, with a default beneath it where core has one."""
    (example,) = re.findall(r"```python\n(@hookimpl.*?)```", sections()[name], re.DOTALL)
    module, beneath = ModuleType("accelmark_acme"), ModuleType("defaults")
    kinds = (
        ChipSpec,
        Device,
        HardwareConfig,
        MemoryReading,
        Peak,
        ProbeResult,
        Run,
        TelemetryReading,
        DeviceError,
    )
    module.__dict__.update({kind.__name__: kind for kind in kinds}, hookimpl=hookimpl, **given)
    module.ACCELMARK_HOOK_API = HOOK_API_VERSION
    exec(example, module.__dict__)
    beneath.build_model = hookimpl(trylast=True)(lambda: MODEL)
    return Vendor("acme", "acme-accelmark", module, defaults=beneath)


EXPECTED = {
    "chips": lambda found: found[0].peak("bf16").tflops == 200 and found[0].peak("fp8").tflops is None,
    "probe": lambda found: found == (ProbeResult(chip="X1", device_name="ACME X1 64G", count=8),),
    "hardware_configs": lambda found: found[0].name == "X1x1x8",
    "tune": lambda found: found == {"compile": False},
    "launch_env": lambda found: found == {"ACCL_BUFFER_MIB": "64"},
    "init_device": lambda found: (
        (found.torch_device, found.name, found.math_mode) == ("acme:1", "ACME X1 #1", {"allow_tf32": "False"})
    ),
    "prepare_engine": lambda found: found is None,
    "build_model": lambda found: found is MODEL,
    "optimizer_wrap": lambda found: isinstance(found, FakeOptimizer) and found.defaults == {"lr": 0.1},
    "collect_memory": lambda found: (found.peak_reserved_gib, found.capacity_gib) == (25, 64),
    "collect_telemetry": lambda found: found == TelemetryReading(power_w=301.5, temperature_c=61),
    "describe_environment": lambda found: found == {"acme_driver": "3.1.4", "accl": "2.0"},
}
HYPER_PARAMETERS = SimpleNamespace(precision="fp32")
EXAMPLE_ARGUMENTS = ARGUMENTS | {
    "hardware_configs": {"case": SimpleNamespace(name="llama2_7b")},
    "init_device": {"plan": SimpleNamespace(hyper_parameters=HYPER_PARAMETERS), "local_rank": 1},
    "prepare_engine": {"plan": SimpleNamespace(engine="deepspeed"), "device": DEVICE},
    "optimizer_wrap": ARGUMENTS["optimizer_wrap"] | {"optimizer": FakeOptimizer([], lr=0.1)},
}


@pytest.mark.parametrize("name", HOOKS)
def test_the_example_on_the_page_runs(name, acme_software):
    vendor = example_plugin(name, acme_software)
    member = getattr(vendor, name)
    answer = member(**EXAMPLE_ARGUMENTS[name]) if callable(member) else member
    assert EXPECTED[name](answer), answer
    done = {"init_device": [1], "prepare_engine": ["the accelerator"], "build_model": [MODEL]}
    assert acme_software["chosen"] == done.get(name, [])


def test_the_example_of_init_device_refuses_a_rank_without_a_device(acme_software):
    vendor = example_plugin("init_device", acme_software)
    with pytest.raises(DeviceError, match="local rank 2 has no X1"):
        vendor.init_device(EXAMPLE_ARGUMENTS["init_device"]["plan"], 2)


def test_the_reference_plugin_covers_every_hook():
    assert list(ANSWERS) == HOOKS == list(ARGUMENTS) == list(EXPECTED)
