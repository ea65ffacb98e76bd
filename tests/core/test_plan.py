"""A plan: which layer wins, where each value came from, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from core import plan as planning
from core import settings
from core.cases import resolve
from core.errors import UsageError
from core.launch import shell_line
from core.plugins import Vendor
from core.selection import parse_sets
from schemas.case import Case
from schemas.evaluation import EvaluationSpec
from schemas.hyperparameters import CheckpointFolders, HyperParameters, LoraSpec
from schemas.plan import Plan
from schemas.units import ModuleNames, PipelineLayers

MakePlan = Callable[..., Plan]
CONFIG, RUN = "config_X1x2x8.py", "config_X1x2x8.py, run base"


def refusal(make_plan: MakePlan, **values: Any) -> UsageError:
    with pytest.raises(UsageError) as error:
        make_plan(**values)
    return error.value


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


OWN_SECTIONS = (*settings.SECTIONS, *settings.RUN_SECTIONS)
"""Of every plan."""


def test_every_value_of_the_plan_has_an_origin(make_plan: MakePlan) -> None:
    plan = make_plan(defaults={"measure.steps": 30}, run={"fix_hp": {"model.num_layers": 2}})
    sections = {"": plan.hyper_parameters} | {f"{name}.": getattr(plan, name) for name in OWN_SECTIONS}
    names = {prefix + name for prefix, section in sections.items() for name in type(section).model_fields}
    assert set(plan.origins) == names | {"engine", "weights"}
    assert plan.origins["measure.steps"] == plan.origins["engine"] == CONFIG
    assert plan.origins["model.num_layers"] == RUN
    assert plan.origins["sequence_length"] == "case toy"
    assert plan.origins["seed"] == "default"


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


@pytest.mark.parametrize(
    ("run", "global_batch", "remark", "fix_hp"),
    [
        ("base", 128, None, {}),
        ("gas64", 1024, "globalbs=2M tokens", {"gradient_accumulation_steps": 64}),
    ],
)
def test_the_published_rows_of_two_nodes_of_h800(
    make_vendor: Callable[..., Vendor],
    run: str,
    global_batch: int,
    remark: str | None,
    fix_hp: dict[str, int],
) -> None:
    loaded = resolve("baichuan2_13b")
    config = loaded.config("H800x2x8")
    plan = planning.build(planning.Request(loaded, config, config.run(run), make_vendor("nvidia")))
    assert plan.parallel.render() == "TP1PP1DP16"
    assert plan.global_batch_size == global_batch
    assert plan.tokens_per_step == global_batch * 2048
    assert (plan.fix_hp, plan.remark) == (fix_hp, remark)
    assert (plan.compute_precision, plan.chip.peak(plan.compute_precision).tflops) == ("bf16", 989.0)
    assert (plan.official, plan.unofficial_reason, plan.scaled_down) == (True, None, False)
    assert plan.engine_config == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": global_batch // 16,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1, "contiguous_gradients": True, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": True},
    }


def test_a_plan_survives_its_file(make_plan: MakePlan) -> None:
    plan = make_plan(run={"fix_hp": {"learning_rate": 3e-4, "compile": False}}, sets={"data.path": "/data"})
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert json.loads(plan.model_dump_json())["topology"] == "X1x2x8"


def test_changes_are_kept_as_what_they_mean(make_plan: MakePlan) -> None:
    run = {"fix_hp": {"local_batch_size": 2, "learning_rate": 1e-4}}
    sets = {"local_batch_size": "4", "compile": "true", "data.path": "/data", "schedule_steps": None}
    plan = make_plan(run=run, sets=sets)
    expected = {"local_batch_size": 4, "learning_rate": 1e-4, "compile": True, "schedule_steps": None}
    assert plan.fix_hp == expected
    assert [type(value) for value in plan.fix_hp.values()] == [int, float, bool, type(None)]


@pytest.mark.parametrize(
    ("hp", "computed", "section"),
    [
        ({"precision": "fp32"}, "fp32", {}),
        ({"precision": "tf32"}, "tf32", {}),
        ({"precision": "amp"}, "bf16", {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}),
        ({"precision": "amp", "autocast_dtype": "fp16"}, "fp16",
         {"torch_autocast": {"enabled": True, "dtype": "float16"}}),
        ({"precision": "fp16"}, "fp16", {"fp16": {"enabled": True, "initial_scale_power": 16}}),
        ({"precision": "bf16"}, "bf16", {"bf16": {"enabled": True}}),
    ],
)  # fmt: skip
def test_precision_decides_the_products_and_deepspeeds_section(
    make_plan: MakePlan, hp: dict[str, Any], computed: str, section: dict[str, Any]
) -> None:
    plan = make_plan(defaults=hp)
    assert plan.compute_precision == computed
    precisions = {"bf16", "fp16", "torch_autocast", "amp"}
    assert {key: value for key, value in plan.engine_config.items() if key in precisions} == section


@pytest.mark.parametrize(
    ("hp", "zero"),
    [
        ({"zero_stage": 0, "precision": "fp32"}, {"stage": 0}),
        ({"zero_stage": 3}, {"stage": 3, "contiguous_gradients": True, "overlap_comm": True}),
        (
            {"zero_stage": 2, "offload": "optimizer"},
            {"stage": 2, "contiguous_gradients": True, "overlap_comm": True,
             "offload_optimizer": {"device": "cpu", "pin_memory": True}},
        ),
    ],
)  # fmt: skip
def test_deepspeeds_sharding(make_plan: MakePlan, hp: dict[str, Any], zero: dict[str, Any]) -> None:
    config = make_plan(defaults=hp).engine_config
    assert config["zero_optimization"] == zero
    assert ("data_types" in config) == (hp["zero_stage"] >= 2)


def test_other_engines_have_no_configuration_of_their_own(make_plan: MakePlan) -> None:
    plan = make_plan(engine="torch", defaults={"zero_stage": 3})
    assert (plan.engine, plan.engine_config) == ("torch", {})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"run": {"fix_hp": {"local_batch_size": 2}}}, None),
        ({"sets": {"data.path": "/data", "weights": "/weights"}}, None),
        ({"sets": {"checkpoint.load": "ck/a", "checkpoint.save": "ck/b"}}, None),
        ({"engine": "torch", "defaults": {"zero_stage": 2}, "run": {"engine": "deepspeed"}}, None),
        ({"sets": {"seed": "1", "local_batch_size": "2"}}, "--set changed local_batch_size, seed"),
        ({"defaults": {"zero_stage": 2}, "engine": "deepspeed", "chosen": "torch"},
         "--engine torch replaced the config's"),
        ({"engine": "deepspeed", "chosen": "deepspeed"}, None),
        ({"defaults": {"measure.steps": 19}}, "19 measured steps are fewer than 20"),
        ({"defaults": {"measure.min_window_s": 5.0}}, "a window of 5.0 s is shorter than 30.0 s"),
        ({"topology": "REFx1x2", "defaults": {"measure.min_window_s": 0.0}}, None),
    ],
)  # fmt: skip
def test_what_makes_a_plan_unofficial(
    make_request: Callable[..., planning.Request], values: dict[str, Any], reason: str | None
) -> None:
    chosen = values.get("chosen")
    given = {key: value for key, value in values.items() if key != "chosen"}
    request = make_request(**given)
    plan = planning.build(planning.Request(**(vars(request) | {"engine": chosen})))
    assert (plan.official, plan.unofficial_reason) == (reason is None, reason)


def test_the_engine_is_the_configs_the_runs_or_the_command_lines(
    make_request: Callable[..., planning.Request],
) -> None:
    request = make_request(engine="torch", defaults={"zero_stage": 2}, run={"engine": "deepspeed"})
    plan = planning.build(request)
    assert (plan.engine, plan.origins["engine"]) == ("deepspeed", RUN)
    plan = planning.build(planning.Request(**(vars(request) | {"engine": "torch"})))
    assert (plan.engine, plan.origins["engine"]) == ("torch", "--engine")
    with pytest.raises(UsageError, match="unknown engine 'jax'") as error:
        planning.build(planning.Request(**(vars(request) | {"engine": "jax"})))
    assert error.value.fix.startswith("use one of: torch, deepspeed")


def test_a_changed_model_is_scaled_down(make_plan: MakePlan) -> None:
    assert not make_plan(sets={"local_batch_size": "2"}).scaled_down
    assert make_plan(defaults={"model.num_layers": 2}).scaled_down
    assert not make_plan(defaults={"model.num_layers": 4}).scaled_down


def test_a_plan_that_cannot_be_is_refused_with_the_nearest_that_can(make_plan: MakePlan) -> None:
    error = refusal(make_plan, defaults={"tensor_parallel": 3, "sequence_length": 8192, "precision": "fp8"})
    assert error.what == (
        "this plan cannot be: TP3 × PP1 = 3 does not divide the 16 chips of X1x2x8; "
        "TP3 does not divide 4 attention heads and 4 key/value heads; "
        "engine deepspeed splits no model over ranks (TP3PP1); "
        "engine deepspeed does not run precision fp8 (only fp32, tf32, amp, fp16, bf16); "
        "sequence_length 8192 is beyond the model's 4096 positions"
    )
    assert error.fix == (
        "the nearest plan that works: --set tensor_parallel=1 --set pipeline_parallel=1 --set precision=bf16 "
        "--set sequence_length=4096"
    )


def test_an_unknown_chip_is_told_with_the_known_ones(make_plan: MakePlan) -> None:
    error = refusal(make_plan, topology="X9x1x8")
    assert str(error) == "vendor 'acme' knows no chip 'X9'\n  fix: use one of: X1, H800, EMU, REF"


def test_the_vendor_sees_the_plan_and_adds_to_the_workers_environment(
    make_plan: MakePlan, make_vendor: Callable[..., Vendor]
) -> None:
    vendor = make_vendor(launch_env=lambda plan: {"ACCL_RINGS": str(plan.topology.chips_per_node)})
    plan = make_plan(vendor=vendor)
    assert plan.launch_env == {"ACCL_RINGS": "8"}
    assert (plan.vendor, plan.vendor_distribution) == ("acme", "acme-plugin")
    assert shell_line(plan).startswith("ACCL_RINGS=8 torchrun --nnodes 2 ")


def test_the_launch_line_of_one_node_starts_torchs_launcher_here(make_plan: MakePlan) -> None:
    plan = make_plan(topology="X1x1x4")
    assert plan.launch == (
        "python", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "4", "-m", "core.worker",
    )  # fmt: skip
    assert shell_line(plan) == f"ACCELMARK_RUN_DIR=RUN_FOLDER {' '.join(plan.launch)}"


def test_the_launch_line_of_several_nodes_plans_the_same_there(make_plan: MakePlan) -> None:
    sets = {"local_batch_size": "2", "data.path": "/my data", "schedule_steps": None}
    plan = make_plan(sets=sets, engine="deepspeed")
    assert shell_line(plan) == (
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint $MASTER_ADDR:29400 "
        "--rdzv-id accelmark -m -- core.run toy --config X1x2x8 --run base --set local_batch_size=2 "
        "--set 'data.path=/my data' --set schedule_steps=none"
    )


def test_the_launch_line_of_several_nodes_keeps_the_chosen_engine(
    make_request: Callable[..., planning.Request],
) -> None:
    request = make_request(defaults={"zero_stage": 2})
    plan = planning.build(planning.Request(**(vars(request) | {"engine": "torch"})))
    assert shell_line(plan).endswith("-m -- core.run toy --config X1x2x8 --run base --engine torch")


def test_another_launcher_must_have_started_the_planned_ranks(make_plan: MakePlan) -> None:
    assert make_plan(world=(2, 8)).topology.render() == "X1x2x8"
    error = refusal(make_plan, world=(1, 4))
    assert error.what == "the launcher started 1 × 4 ranks, config X1x2x8 plans 2 × 8"
    assert error.fix == "start 16 ranks, or add a config_X1x1x4.py to the case"


def test_the_reference_chip_takes_as_many_ranks_as_there_are(make_plan: MakePlan) -> None:
    plan = make_plan(topology="REFx1x2", world=(1, 4))
    assert (plan.config, plan.topology.render(), plan.parallel.dp) == ("REFx1x2", "REFx1x4", 4)
    assert plan.global_batch_size == 1 * 8 * 4


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


def test_what_a_case_leaves_out_is_the_default(toy: Case, make_plan: MakePlan) -> None:
    given = toy.hyper_parameters.model_fields_set
    plan = make_plan(case=toy)
    for name, field in HyperParameters.model_fields.items():
        if name not in given | {"zero_stage"}:
            assert getattr(plan.hyper_parameters, name) == field.default
            assert plan.origins[name] == "default"


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


def test_a_list_that_does_not_fit_is_answered_with_one_that_does(make_plan: MakePlan) -> None:
    error = refusal(make_plan, engine="megatron", sets={"pipeline_layers": "1-2", "pipeline_parallel": "2"})
    assert error.fix == "the nearest plan that works: --set pipeline_layers=2-2"


def test_settings_of_every_type_can_be_given_as_text(make_plan: MakePlan) -> None:
    sets = {"zero_stage": "2", "compile": "true", "learning_rate": "3e-4", "schedule_steps": "none", "seed": "7"}
    hp = make_plan(sets=parse_sets([f"{key}={value}" for key, value in sets.items()])).hyper_parameters
    assert (hp.zero_stage, hp.compile, hp.learning_rate, hp.schedule_steps, hp.seed) == (2, True, 3e-4, None, 7)
