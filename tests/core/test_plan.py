"""What follows from a plan's settings: topology, engine and its configuration, refusals, and the launch line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from core import plan as planning
from core.cases import resolve
from core.errors import UsageError
from core.launch import shell_line
from core.plugins import Vendor
from schemas.plan import Plan
from tests.core.conftest import refusal

MakePlan = Callable[..., Plan]


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


def test_engine_torch_has_no_configuration_of_its_own(make_plan: MakePlan) -> None:
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
        ({"sets": {"measure.steps": "20", "measure.min_window_s": "60"}}, None),
        ({"sets": {"measure.steps": "19", "measure.min_window_s": "60"}}, "19 measured steps are fewer than 20"),
        ({"sets": {"measure.min_window_s": "29.9"}}, "a window of 29.9 s is shorter than 30.0 s"),
        ({"sets": {"measure.steps": "20", "measure.epochs": "1"}}, "--set changed measure.epochs"),
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
    assert (plan.engine, plan.origins["engine"]) == ("deepspeed", "config_X1x2x8.py, run base")
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


def test_a_list_that_does_not_fit_is_answered_with_one_that_does(make_plan: MakePlan) -> None:
    error = refusal(make_plan, engine="megatron", sets={"pipeline_layers": "1-2", "pipeline_parallel": "2"})
    assert error.fix == "the nearest plan that works: --set pipeline_layers=2-2"


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
