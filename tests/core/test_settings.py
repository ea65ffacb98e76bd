"""Settings of a plan: which layer wins, where each value came from, how they are written, which are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from core import settings
from core.selection import parse_sets
from schemas.case import Case
from schemas.evaluation import EvaluationSpec
from schemas.hyperparameters import CheckpointFolders, HyperParameters, LoraSpec
from schemas.plan import Plan
from schemas.units import ModuleNames, PipelineLayers
from tests.core.conftest import refusal

MakePlan = Callable[..., Plan]
CONFIG, RUN = "config_X1x2x8.py", "config_X1x2x8.py, run base"
OWN_SECTIONS = (*settings.SECTIONS, *settings.RUN_SECTIONS)
"""Of every plan."""


def test_each_layer_covers_the_ones_before_and_leaves_its_name(make_plan: MakePlan) -> None:
    layers: list[dict[str, Any]] = [
        {},
        {"defaults": {"local_batch_size": 2}},
        {"run": {"fix_hp": {"local_batch_size": 3}}},
        {"sets": {"local_batch_size": "4"}},
    ]
    given: dict[str, Any] = {}
    for value, origin in ((1, "case toy"), (2, CONFIG), (3, RUN), (4, "--set")):
        given |= layers[value - 1]
        plan = make_plan(**given)
        assert plan.hyper_parameters.local_batch_size == value
        assert plan.origins["local_batch_size"] == origin


def test_every_value_of_the_plan_has_an_origin(make_plan: MakePlan) -> None:
    plan = make_plan(defaults={"measure.steps": 30}, run={"fix_hp": {"model.num_layers": 2}})
    sections = {"": plan.hyper_parameters} | {f"{name}.": getattr(plan, name) for name in OWN_SECTIONS}
    names = {prefix + name for prefix, section in sections.items() for name in type(section).model_fields}
    assert set(plan.origins) == names | {"engine", "weights"}
    assert plan.origins["measure.steps"] == plan.origins["engine"] == CONFIG
    assert plan.origins["model.num_layers"] == RUN
    assert plan.origins["sequence_length"] == "case toy"
    assert plan.origins["seed"] == "default"


def test_what_a_case_leaves_out_is_the_default(toy: Case, make_plan: MakePlan) -> None:
    given = toy.hyper_parameters.model_fields_set
    plan = make_plan(case=toy)
    for name, field in HyperParameters.model_fields.items():
        if name not in given | {"zero_stage"}:
            assert getattr(plan.hyper_parameters, name) == field.default
            assert plan.origins[name] == "default"


LORA = LoraSpec(r=8, alpha=32, dropout=0.05, target_modules="q_proj+v_proj")

MMLU = EvaluationSpec(benchmark="MMLU", shots=5)


def test_adapters_and_an_evaluation_are_settings_of_the_cases_that_have_them(
    make_plan: MakePlan, toy: Case
) -> None:
    case = toy.model_copy(update={"lora": LORA, "evaluation": MMLU})
    plan = make_plan(case=case, sets={"lora.target_modules": "q_proj", "evaluation.path": "/mmlu"})
    assert plan.lora == LORA.model_copy(update={"target_modules": ModuleNames.parse("q_proj")})
    assert plan.evaluation == MMLU.model_copy(update={"path": "/mmlu"})
    assert plan.origins["lora.target_modules"] == plan.origins["evaluation.path"] == "--set"
    assert plan.unofficial_reason == "--set changed lora.target_modules"
    assert make_plan().lora is None
    assert refusal(make_plan, sets={"lora.r": "4"}).what == "--set: unknown setting 'lora.r' (value '4')"


@pytest.mark.parametrize(
    ("added", "what"),
    [
        ({"lora": LORA}, "engine megatron trains no LoRA adapters"),
        ({"evaluation": MMLU}, "engine megatron evaluates no model"),
    ],
)
def test_an_engine_that_lacks_what_the_case_needs_is_refused(
    make_plan: MakePlan, toy: Case, added: dict[str, Any], what: str
) -> None:
    error = refusal(make_plan, case=toy.model_copy(update=added), engine="megatron")
    assert (error.what, error.fix) == (what, "use engine torch or deepspeed")


def test_changes_are_kept_as_what_they_mean(make_plan: MakePlan) -> None:
    run = {"fix_hp": {"local_batch_size": 2, "learning_rate": 1e-4}}
    sets = {"local_batch_size": "4", "compile": "true", "data.path": "/data", "schedule_steps": None}
    plan = make_plan(run=run, sets=sets)
    expected = {"local_batch_size": 4, "learning_rate": 1e-4, "compile": True, "schedule_steps": None}
    assert plan.fix_hp == expected
    assert [type(value) for value in plan.fix_hp.values()] == [int, float, bool, type(None)]


def test_settings_of_every_type_can_be_given_as_text(make_plan: MakePlan) -> None:
    sets = {"zero_stage": "2", "compile": "true", "learning_rate": "3e-4", "schedule_steps": "none", "seed": "7"}
    hp = make_plan(sets=parse_sets([f"{key}={value}" for key, value in sets.items()])).hyper_parameters
    assert (hp.zero_stage, hp.compile, hp.learning_rate, hp.schedule_steps, hp.seed) == (2, True, 3e-4, None, 7)


@pytest.mark.parametrize("layer", ["run", "sets"])
def test_a_list_of_layers_is_written_as_text(make_plan: MakePlan, layer: str) -> None:
    given = {"pipeline_layers": "1-3", "pipeline_parallel": 2}
    plan = make_plan(engine="megatron", **{layer: {"fix_hp": given} if layer == "run" else given})
    assert plan.hyper_parameters.pipeline_layers == PipelineLayers(counts=(1, 3))
    assert plan.fix_hp["pipeline_layers"] == "1-3"
    assert plan.engine_config["transformer"]["pipeline_model_parallel_layout"] == "Et*1|t*3L"  # type: ignore[index, call-overload]
    assert json.loads(plan.model_dump_json())["hyper_parameters"]["pipeline_layers"] == "1-3"
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_list_in_another_notation_is_told(make_plan: MakePlan) -> None:
    error = refusal(make_plan, engine="megatron", sets={"pipeline_layers": "1,3"})
    assert "--set: pipeline_layers: '1,3' is not a PipelineLayers; write it like '19-20-21-20'" in error.what
    assert error.fix == "correct pipeline_layers in --set"


@pytest.mark.parametrize("layer", ["defaults", "run", "sets"])
def test_an_unknown_setting_is_told_with_the_closest_known_one(make_plan: MakePlan, layer: str) -> None:
    given = {"gradient_accumulation_step": 4}
    origin = {"defaults": CONFIG, "run": RUN, "sets": "--set"}[layer]
    error = refusal(make_plan, **{layer: {"fix_hp": given} if layer == "run" else given})
    assert error.what == f"{origin}: unknown setting 'gradient_accumulation_step' (value 4)"
    assert error.fix == "did you mean 'gradient_accumulation_steps'?"


def test_a_setting_like_no_other_is_answered_with_all(make_plan: MakePlan) -> None:
    error = refusal(make_plan, sets={"zzz": "1"})
    assert error.fix.startswith("known: activation_checkpointing, adam_beta1, ")
    assert "model.num_layers" in error.fix


@pytest.mark.parametrize(
    ("values", "what", "fix"),
    [
        ({"sets": {"local_batch_size": "two"}},
         "--set: local_batch_size: Input should be a valid integer, unable to parse string as an integer "
         "(got 'two')",
         "correct local_batch_size in --set"),
        ({"defaults": {"measure.steps": 0}},
         f"{CONFIG}: measure.steps: Input should be greater than 0 (got 0)",
         f"correct measure.steps in {CONFIG}"),
        ({"run": {"fix_hp": {"zero_stage": 4}}},
         f"{RUN}: zero_stage: Input should be less than or equal to 3 (got 4)", f"correct zero_stage in {RUN}"),
        ({"sets": {"data.description": "web"}}, "--set: data.description: ", "correct data.description in --set"),
        ({"defaults": {"model.hidden_size": 66}, "sets": {"model.num_heads": "4"}},
         f"{CONFIG}, --set: model: hidden_size 66 is not a multiple of num_heads 4",
         f"correct model.hidden_size in {CONFIG}, model.num_heads in --set"),
        ({"defaults": {"seed": -1}, "sets": {"precision": "bf8"}},
         "--set: precision: Input should be 'fp32', 'tf32', 'amp', 'fp16', 'bf16' or 'fp8' (got 'bf8')\n"
         f"{CONFIG}: seed: Input should be greater than or equal to 0 (got -1)",
         f"correct precision in --set, seed in {CONFIG}"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_by_layer_field_and_value(
    make_plan: MakePlan, values: dict[str, Any], what: str, fix: str
) -> None:
    error = refusal(make_plan, **values)
    assert error.what.startswith(what)
    assert error.fix == fix


def test_weights_and_prepared_data_are_places_on_this_machine(make_plan: MakePlan) -> None:
    plan = make_plan(sets={"weights": "/weights", "data.path": "/data", "data.generated_sequences": "1"})
    assert (plan.weights, plan.data.path) == ("/weights", "/data")
    assert plan.global_batch_size > plan.data.generated_sequences  # which is of no account here
    assert make_plan().weights is None


def test_checkpoints_are_places_on_this_machine_too(make_plan: MakePlan) -> None:
    plan = make_plan(sets={"checkpoint.load": "ck/a", "checkpoint.save": "ck/b"})
    assert (plan.checkpoint.load, plan.checkpoint.save) == ("ck/a", "ck/b")
    assert plan.fix_hp == {}
    assert make_plan().checkpoint == CheckpointFolders()
