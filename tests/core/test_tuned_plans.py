"""What a tuned run is planned with: core's choice, the vendor's, and what run and command line ask for."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from core import HOOK_API_VERSION, cases, hookimpl, plan
from core.errors import UsageError
from core.plugins import Vendor, select
from schemas.case import HardwareConfig, Run
from schemas.hyperparameters import Overrides
from schemas.plan import Plan
from tests.core.test_tuning import chip

ROOT = Path(__file__).parents[2]


def acme(answer: Overrides | None, told: Overrides | None = None) -> Vendor:
    module = ModuleType("accelmark_acme")
    module.ACCELMARK_HOOK_API = HOOK_API_VERSION  # type: ignore[attr-defined]
    module.chips = hookimpl(lambda: [chip()])  # type: ignore[attr-defined]
    module.chips.__name__ = "chips"

    @hookimpl
    def tune(chosen: Overrides) -> Overrides | None:
        if told is not None:
            told.update(chosen)
        return answer

    module.tune = tune  # type: ignore[attr-defined]
    return Vendor("acme", "acme-accelmark", module)


def planned(vendor: Vendor, run: Run, *, case: str = "llama2_7b", topology: str = "X1x1x4", engine: str = "torch",
            sets: Overrides | None = None) -> Plan:  # fmt: skip
    loaded = cases.resolve(str(ROOT / "cases" / case))
    value = HardwareConfig(vendor=vendor.name, topology=topology, engine=engine, runs=(run,))
    config = cases.Config(value, f"config_{topology}.py")
    return plan.build(plan.Request(loaded, config, run, vendor, sets=sets or {}))


def test_a_plan_tells_what_was_chosen_and_by_whom() -> None:
    run = Run(id="tuned", tuned=True, fix_hp={"precision": "bf16"})
    made = planned(acme({"compile": False, "attention": "eager"}), run, sets={"attention": "sdpa"})
    hp = made.hyper_parameters
    assert (hp.attention, hp.compile, hp.loss, hp.zero_stage) == ("sdpa", False, "chunked", 2)
    assert made.origins["zero_stage"] == made.origins["loss"] == "tuned for X1x1x4"
    assert made.origins["attention"] == "--set"
    assert made.fix_hp == {"loss": "chunked", "zero_stage": 2, "precision": "bf16", "attention": "sdpa"}


def test_a_command_line_is_reckoned_with_as_a_config_is() -> None:
    sets: tuple[Overrides, ...] = ({"zero_stage": 3}, {"zero_stage": "3"})
    made = [planned(acme(None), Run(id="tuned", tuned=True), sets=given) for given in sets]
    assert made[0].hyper_parameters == made[1].hyper_parameters
    assert made[1].hyper_parameters.local_batch_size == 3
    assert made[1].hyper_parameters.activation_checkpointing == "none"


def test_there_is_a_stage_whose_shards_copies_can_move() -> None:
    # The fastest of bf16 state are replicas, which a plan refuses beside copies.
    for sets in ({}, {"collectives": "peer_copies"}):
        run = Run(id="tuned", tuned=True, fix_hp={"precision": "bf16", "optimizer_state": "bf16_stochastic"})
        hp = planned(acme(None), run, sets=sets).hyper_parameters
        assert hp.zero_stage == (2 if sets else 0)


def test_a_vendor_is_told_values_of_what_a_command_line_sets() -> None:
    told: Overrides = {}
    sets: Overrides = {"zero_stage": "3", "model.num_layers": "8", "compile": "no"}
    planned(acme(None, told), Run(id="tuned", tuned=True), sets=sets)
    assert (told["zero_stage"], told["model.num_layers"], told["compile"]) == (3, 8, False)


def test_what_the_vendor_wants_is_reckoned_with() -> None:
    # Gradients that peers copy are half as many bytes: smaller micro-batches send them more often.
    run = Run(id="tuned", tuned=True, fix_hp={"gathered_layers": 0, "activation_checkpointing": "none"})
    found = [
        planned(acme(answer), run, case="baichuan2_13b").hyper_parameters
        for answer in (None, {"collectives": "peer_copies"}, {"zero_stage": 2})
    ]
    assert [(hp.zero_stage, hp.local_batch_size, hp.gradient_accumulation_steps) for hp in found] == [
        (3, 4, 2),
        (2, 2, 4),
        (2, 2, 4),
    ]


def test_nothing_is_chosen_for_other_runs() -> None:
    made = planned(acme({"compile": True}), Run(id="base"))
    assert made.fix_hp == {}
    assert not made.hyper_parameters.compile


@pytest.mark.parametrize(
    ("case", "topology", "attention"),
    [
        ("baichuan2_13b", "H200x1x4", "vendor"),
        ("baichuan2_13b", "A100-80Gx1x4", "flex"),  # not measured
        ("llama2_7b", "H200x1x4", "sdpa"),
    ],
)
def test_nvidia_has_a_fused_kernel_for_alibi(case: str, topology: str, attention: str) -> None:
    made = planned(select("nvidia"), Run(id="tuned", tuned=True), case=case, topology=topology)
    assert made.hyper_parameters.attention == attention


@pytest.mark.parametrize(
    ("sets", "attention"),
    [
        ({"precision": "fp32"}, "flex"),
        ({"precision": "fp8"}, "vendor"),
        ({"model.hidden_size": 7680}, "flex"),  # heads of 192 channels
        ({"model.position": "rope"}, "sdpa"),
    ],
)
def test_what_is_set_decides_which_kernel_takes_it(sets: Overrides, attention: str) -> None:
    run = Run(id="tuned", tuned=True)
    made = planned(select("nvidia"), run, case="baichuan2_13b", topology="H200x1x4", sets=sets)
    assert made.hyper_parameters.attention == attention


@pytest.mark.parametrize(
    ("topology", "sets", "collectives"),
    [
        ("H200x1x4", {}, "peer_copies"),
        ("H200x1x1", {}, "library"),
        ("H200x1x1", {"zero_stage": "3"}, "library"),
        ("H200x2x4", {}, "library"),
        ("H200x1x4", {"optimizer_state": "bf16_stochastic"}, "peer_copies"),
        ("H200x1x4", {"collectives": "library"}, "library"),
        ("H200x1x4", {"zero_stage": "3"}, "peer_copies"),  # as a command line gives it
        ("H200x1x4", {"zero_stage": 0, "model.num_layers": 8}, "library"),
        ("H200x1x4", {"zero_stage": 0, "local_batch_size": 32}, "library"),  # fits by no estimate, and is tried
    ],
)
def test_nvidia_moves_the_shards_of_one_node_by_copies(topology: str, sets: Overrides, collectives: str) -> None:
    run = Run(id="tuned", tuned=True, fix_hp={"precision": "bf16"})
    made = planned(select("nvidia"), run, topology=topology, sets=sets)
    assert made.hyper_parameters.collectives == collectives


def test_an_unknown_setting_of_a_vendor_is_told() -> None:
    with pytest.raises(UsageError, match="tuned for X1x1x4: unknown setting 'compiled'"):
        planned(acme({"compiled": True}), Run(id="tuned", tuned=True))


@pytest.mark.parametrize(
    ("case", "engine", "words"),
    [("llama2_7b", "deepspeed", "engine deepspeed"), ("llama2_7b_finetune", "torch", "images or adapters")],
)
def test_a_run_of_which_too_little_is_known_is_refused(case: str, engine: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"tuned run with {words}") as told:
        planned(acme(None), Run(id="tuned", tuned=True), case=case, engine=engine)
    assert "fix_hp" in told.value.fix
