"""Which runs a command line means on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import plan, plugins, selection
from core.cases import Config, LoadedCase
from core.engines.catalog import engine_spec
from core.errors import DeviceError, UsageError
from core.plugins import Present, Vendor
from core.selection import (
    Selection,
    choose,
    parse_sets,
    require_chips,
    require_extras,
    require_packages,
    require_paths,
)
from schemas.case import Case, HardwareConfig, Run
from schemas.chip import ProbeResult
from schemas.evaluation import EvaluationSpec
from schemas.plan import Plan

MakeVendor = Callable[..., Vendor]


def config(topology: str, vendor: str = "acme", runs: tuple[str, ...] = ("base",)) -> Config:
    rows = tuple(Run(id=name) for name in runs)
    value = HardwareConfig(vendor=vendor, topology=topology, engine="torch", runs=rows)
    return Config(value, f"config_{topology}.py")


def seen(chip: str | None, count: int | None, name: str = "ACME X1") -> ProbeResult:
    return ProbeResult(chip=chip, device_name=name, count=count)


@pytest.fixture
def machine(toy: Case, make_vendor: MakeVendor, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the case has configs for, and what each vendor's probe finds."""

    def make(configs: list[Config], **probes: list[ProbeResult]) -> None:
        loaded = LoadedCase(toy, "toy", Path(), tuple(configs), {})
        vendors = {name: make_vendor(name, probe=lambda found=found: found) for name, found in probes.items()}
        present = tuple(Present(vendors[name], result) for name, found in probes.items() for result in found)
        monkeypatch.setattr(selection, "resolve", lambda argument: loaded)
        monkeypatch.setattr(plugins, "select", lambda choice: vendors[choice.partition("@")[0]])
        monkeypatch.setattr(plugins, "probe_all", lambda: (present, {}))

    return make


def chosen(**options: Any) -> list[tuple[str, str]]:
    return [(request.config.value.name, request.run.id) for request in choose(Selection("toy", **options), print)]


CPU = config("REFx1x2", "cpu")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([seen("X1", 8)], "X1x1x8"),
        ([seen("X1", 7)], "X1x1x4"),
        ([seen("X1", 4)], "X1x1x4"),
        ([seen("X1", 2)], "REFx1x2"),
        ([seen("H800", 8)], "REFx1x2"),
        ([seen(None, 8, "ACME of tomorrow")], "REFx1x2"),
        ([seen("not in the plugin's list", 8)], "REFx1x2"),
        ([seen("H800", 1), seen("X1", 4)], "X1x1x4"),
        ([], "REFx1x2"),
    ],
)
def test_the_largest_config_of_one_node_that_fits_else_the_cpu_default(
    machine: Callable[..., None], found: list[ProbeResult], expected: str
) -> None:
    machine([CPU, config("X1x1x4"), config("X1x1x8"), config("X1x2x8")], cpu=[seen("REF", None)], acme=found)
    assert chosen() == [(expected, "base")]


def test_all_runs_of_a_config_or_the_named_one(machine: Callable[..., None]) -> None:
    machine([config("X1x1x8", runs=("base", "gas64"))], acme=[seen("X1", 8)])
    assert chosen() == [("X1x1x8", "base"), ("X1x1x8", "gas64")]
    assert chosen(run="gas64") == [("X1x1x8", "gas64")]
    with pytest.raises(UsageError, match="has no run 'gas128'"):
        chosen(run="gas128")


def test_a_named_config_needs_no_such_machine_to_be_planned(machine: Callable[..., None]) -> None:
    machine([CPU, config("X1x2x8")], cpu=[seen("REF", None)], acme=[])
    assert chosen(config="X1x2x8") == [("X1x2x8", "base")]
    assert chosen(config="X1x2x8", vendor="acme@acme-plugin") == [("X1x2x8", "base")]


def test_a_config_is_of_its_own_vendor(machine: Callable[..., None]) -> None:
    machine([config("X1x2x8")], acme=[], cpu=[])
    with pytest.raises(UsageError) as error:
        chosen(config="X1x2x8", vendor="cpu")
    assert str(error.value) == (
        "config X1x2x8 is of vendor 'acme', not 'cpu'\n  fix: leave out --vendor, or choose a config of 'cpu'"
    )


def test_a_named_vendor_runs_what_its_chips_here_fit(machine: Callable[..., None]) -> None:
    machine([CPU, config("X1x1x8")], acme=[seen("X1", 8)], cpu=[seen("REF", None)])
    assert chosen(vendor="cpu") == [("REFx1x2", "base")]
    assert chosen(vendor="acme") == [("X1x1x8", "base")]


def test_a_named_vendor_without_chips_here_is_an_error(machine: Callable[..., None]) -> None:
    machine([CPU, config("X1x1x8")], acme=[seen("X1", 2)], cpu=[seen("REF", None)])
    with pytest.raises(DeviceError) as error:
        chosen(vendor="acme")
    assert error.value.what == "this machine holds no acme chip that case 'toy' has a config for"
    assert error.value.fix == "name a config with --config: REFx1x2, X1x1x8"


def test_a_case_without_a_config_for_this_machine_is_an_error(machine: Callable[..., None]) -> None:
    machine([config("X1x2x8")], acme=[seen("X1", 8)], cpu=[seen("REF", None)])
    with pytest.raises(UsageError) as error:
        chosen()
    assert str(error.value) == "case 'toy' has no config for this machine\n  fix: name one: X1x2x8"


def test_options_travel_with_the_request(machine: Callable[..., None]) -> None:
    machine([config("X1x1x8")], acme=[seen("X1", 8)])
    options = Selection("toy", engine="deepspeed", sets={"seed": "1"})
    (request,) = choose(options, print, world=(1, 8))
    assert (request.engine, request.sets, request.world) == ("deepspeed", {"seed": "1"}, (1, 8))


@pytest.mark.parametrize(
    ("found", "held"),
    [
        ([], "none of this vendor's"),
        ([seen("X1", 4)], "4 × X1"),
        ([seen("H800", 8), seen(None, 1)], "8 × H800, 1 × None"),
    ],
)
def test_a_run_needs_its_chips_on_this_machine(
    make_request: Callable[..., plan.Request], make_vendor: MakeVendor, found: list[ProbeResult], held: str
) -> None:
    with pytest.raises(DeviceError) as error:
        require_chips(make_request(topology="X1x1x8", vendor=make_vendor(probe=lambda: found)))
    assert error.value.what == f"config X1x1x8 needs 8 × X1, this machine holds {held}"
    assert error.value.fix == "run it on such a machine, or see the plan with --dry-run"


@pytest.mark.parametrize("count", [8, 16, None])
def test_a_machine_with_enough_chips_is_accepted(
    make_request: Callable[..., plan.Request], make_vendor: MakeVendor, count: int | None
) -> None:
    require_chips(make_request(topology="X1x1x8", vendor=make_vendor(probe=lambda: [seen("X1", count)])))


def test_an_engine_needs_its_packages() -> None:
    engine = replace(engine_spec("deepspeed"), packages=("json.decoder", "not_there_at_all", "nor.this"))
    with pytest.raises(DeviceError) as error:
        require_packages(engine)
    assert error.value.what.startswith("engine deepspeed needs not_there_at_all and nor.this, not installed for ")
    assert "accelmark[deepspeed]" in error.value.fix
    require_packages(replace(engine, packages=("json",)))


@pytest.mark.parametrize(
    ("options", "sets"),
    [
        ([], {}),
        (["local_batch_size=2", "model.num_layers=3"], {"local_batch_size": "2", "model.num_layers": "3"}),
        (["data.path=/a=b"], {"data.path": "/a=b"}),
        (["seed=1", "seed=2"], {"seed": "2"}),
        (["data.path=none", "weights=null", "schedule_steps=None"],
         {"data.path": None, "weights": None, "schedule_steps": None}),
        (["offload=none", "activation_checkpointing=null"],
         {"offload": "none", "activation_checkpointing": "null"}),
    ],
)  # fmt: skip
def test_settings_on_the_command_line(options: list[str], sets: dict[str, str | None]) -> None:
    assert parse_sets(options) == sets


@pytest.mark.parametrize("option", ["local_batch_size", "=2", ""])
def test_a_setting_without_key_or_value_is_an_error(option: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_sets([option])
    assert error.value.what == f"--set {option!r} is not key=value"
    assert error.value.fix == "write it like --set local_batch_size=2"


def test_none_takes_back_what_a_config_set_and_stays_a_value_elsewhere(make_plan: Callable[..., Plan]) -> None:
    given = {"zero_stage": 2, "schedule_steps": 100, "offload": "optimizer"}
    planned = make_plan(defaults=given, sets=parse_sets(["schedule_steps=none", "offload=none"]))
    assert planned.hyper_parameters.schedule_steps is None
    assert planned.hyper_parameters.offload == "none"


def test_a_vendor_that_cannot_look_for_its_chips_is_not_passed_over_silently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("core.plugins.probe_all", lambda: ((), {"acme": "driver and library do not fit"}))
    told: list[str] = []
    with pytest.raises(UsageError, match="has no config for this machine"):
        choose(Selection("llama2_7b"), told.append)
    assert told == ["vendor acme could not look for its chips: driver and library do not fit"]


def test_a_vendor_that_cannot_give_its_configs_is_told_of(
    toy: Case, make_vendor: MakeVendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedCase(toy, "toy", Path(), (config("X1x1x8"),), {"acme": "KeyError: 'toy'"})
    monkeypatch.setattr(selection, "resolve", lambda argument: loaded)
    monkeypatch.setattr(plugins, "select", lambda choice: make_vendor(probe=lambda: [seen("X1", 8)]))
    told: list[str] = []
    choose(Selection("toy", vendor="acme"), told.append)
    assert told == ["vendor acme gave no configs: KeyError: 'toy'"]


def test_a_package_that_the_data_or_the_benchmark_needs(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan()
    images = plan.model_copy(update={"data": plan.data.model_copy(update={"format": "conversations"})})
    monkeypatch.setitem(selection.EXTRA_PACKAGES, "conversations", ("multimodal", ("json", "no_such_package")))
    require_extras(plan)
    with pytest.raises(DeviceError, match="needs no_such_package, not installed") as raised:
        require_extras(images)
    assert raised.value.fix == "pip install 'accelmark[multimodal]'"


def test_a_package_that_the_precision_needs(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(selection.EXTRA_PACKAGES, "fp8", ("fp8", ("no_such_package",)))
    plan = make_plan()
    require_extras(plan)
    hp = plan.hyper_parameters.model_copy(update={"precision": "fp8"})
    with pytest.raises(DeviceError, match=f"run {plan.run} of toy needs no_such_package, not installed") as raised:
        require_extras(plan.model_copy(update={"hyper_parameters": hp}))
    assert raised.value.fix == "pip install 'accelmark[fp8]'"


@pytest.mark.parametrize("key", ["data.path", "tokenizer.path", "weights", "checkpoint.load", "evaluation.path"])
def test_what_a_run_is_to_read_must_lie_on_this_machine(
    toy: Case, make_plan: Callable[..., Plan], tmp_path: Path, key: str
) -> None:
    asked = toy.model_copy(update={"evaluation": EvaluationSpec(benchmark="MMLU")})
    require_paths(make_plan(case=asked))
    require_paths(make_plan(case=asked, sets={key: str(tmp_path)}))
    with pytest.raises(UsageError) as error:
        require_paths(make_plan(case=asked, sets={key: "/nowhere"}))
    assert error.value.what == f"--set: {key}=/nowhere is not on this machine"
    assert error.value.fix == f"correct {key}, or leave it out"
