"""The limit: what a step is composed of, by arithmetic; and one small run below its limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core import metrics
from core import plan as planning
from core.errors import UsageError
from core.layout import count_parameters
from core.record import RECORD_FILE
from core.report.load import load_records
from core.selection import Selection, choose
from core.worker import PLAN_FILE
from schemas.plan import Plan
from schemas.record import Parameters, Record
from tests.benchmarks import roofline
from tests.benchmarks.chip_times import timed
from tests.benchmarks.step_parts import AttentionShape, Product, step_parts

ROOT = Path(__file__).parents[2]
FLOPS, FP8_FLOPS, BYTES = 700e12, 1400e12, 4e12


class ExactChip:
    """As fast as it is said to be, or at a share of that."""

    def __init__(self, share: float = 1.0) -> None:
        self._share = share

    def product_s(self, product: Product) -> tuple[float, ...]:
        rate = (FP8_FLOPS if product.fp8 else FLOPS) * self._share
        return (product.flops / rate,) * (1 + len(product.gradients))

    def attention_s(self, shape: AttentionShape) -> tuple[float, str]:
        return shape.flops / FLOPS / self._share, "exact"

    def bytes_per_s(self) -> float:
        return BYTES * self._share


def limit_of(plan: Plan, *shares: float, record: Record | None = None) -> roofline.Roofline:
    """By exact chips of these shares; of none, by one that is as fast as it is said to be."""
    parts = step_parts(plan, None if record is None else record.throughput)
    chips = [timed(parts, ExactChip(share), f"exact {share}") for share in shares or (1.0,)]
    return roofline.compose(plan, parts, chips, record)


def record_of(case: str, run: str) -> Record:
    records = load_records(ROOT / "cases" / case / "records")
    return next(record for name, record in records.items() if run in name)


def composed(record: Record) -> roofline.Roofline:
    assert record.plan is not None
    return limit_of(record.plan, record=record)


def plan_of(case: str, config: str, run: str = "tuned", **sets: object) -> Plan:
    (request,) = choose(Selection(case, config, run, sets=dict(sets)), print)
    return planning.build(request)


@pytest.mark.parametrize(
    ("case", "config", "count"),
    [("llama2_7b", "H200x1x1", 6_738_415_616), ("baichuan2_13b", "H200x1x4", 13_896_668_160)],
)
def test_products_do_the_flops_that_mfu_counts(case: str, config: str, count: int) -> None:
    plan = plan_of(case, config)
    parts, model = step_parts(plan), plan.model
    embedding = 2 * model.vocab_size * model.hidden_size
    counted = Parameters(total=count, trainable=count, embedding=embedding)
    causal = metrics.flops_per_token(metrics.Work.of(plan, counted))["causal"] * parts.tokens
    done = sum(3 * p.flops * p.times for p in (*parts.products, parts.head))
    (attention,) = parts.attentions
    scores = attention.flops * attention.times * 6 / 7  # one product of the backward is done again
    assert done + scores == pytest.approx(causal, rel=1e-4)  # but for the norms' weights


def test_a_step_is_the_sum_of_its_parts() -> None:
    plan = plan_of("llama2_7b", "H200x1x1")
    found = limit_of(plan)
    assert found.step_s == pytest.approx(sum(found.seconds.values()))
    assert found.tokens_per_second_per_chip == pytest.approx(12_288 / found.step_s)
    assert found.seconds["optimizer"] == pytest.approx(16 * 6_738_415_616 / BYTES)
    assert found.seconds["matrix_products"] / found.step_s > 0.7
    assert 14_000 < found.tokens_per_second_per_chip < 17_000  # at the rates that products reach on an H200


def test_fp32_state_that_is_sharded_is_updated_by_all_chips() -> None:
    four, more = plan_of("llama2_7b", "H200x1x4"), plan_of("llama2_7b", "H200x1x2")
    assert step_parts(four).optimizer_bytes * 2 == step_parts(more).optimizer_bytes
    assert step_parts(four).optimizer_bytes == 38 * 6_738_415_616 / 4


def test_recomputation_and_the_split_into_micro_batches_hardly_move_the_limit() -> None:
    one = plan_of("baichuan2_13b", "H200x1x1", "published")
    limits = [
        limit_of(plan).tokens_per_second_per_chip
        for plan in (one, plan_of("baichuan2_13b", "H200x1x1", "tuned"))  # 8 micro-batches and 4
    ]
    assert limits[0] == pytest.approx(limits[1], rel=0.02)


def test_a_split_models_chip_has_its_part_of_each_product() -> None:
    whole = step_parts(plan_of("llama2_70b", "H200x1x4", "tp4"))
    plan = plan_of("llama2_70b", "H200x1x4", "tp4")
    done = sum(3 * p.flops * p.times for p in (*whole.products, whole.head))
    weights = count_parameters(plan.model) - plan.model.vocab_size * plan.model.hidden_size
    assert done == pytest.approx(6 * weights * whole.tokens, rel=1e-3)


def test_frozen_weights_have_no_gradient_and_no_update() -> None:
    parts = step_parts(plan_of("llama2_7b_finetune", "H200x1x1"))
    assert parts.optimizer_bytes == 0
    assert {product.gradients for product in (*parts.products, parts.head)} == {("input",)}


def test_a_share_is_of_the_record_that_lies_in_the_run() -> None:
    record = record_of("llama2_7b", "H200x1x1-tuned-")
    assert record.throughput is not None
    found = composed(record)
    rate = record.throughput.tokens_per_second_per_chip
    assert found.share == pytest.approx(rate / found.tokens_per_second_per_chip)
    assert f"Run `{record.id}` reaches" in roofline.table(found)


@pytest.mark.parametrize(
    ("case", "run", "share"),
    [
        ("llama2_7b", "H200x1x1-tuned_fp8-", (0.70, 0.85)),
        ("baichuan2_13b", "H200x1x1-tuned_fp8-", (0.65, 0.80)),
        ("llava1_5_13b", "finetune_tuned-", (0.70, 0.85)),
        ("llava1_5_13b", "pretrain-", (0.50, 0.60)),  # with full checkpointing: at most 4 of 6
        ("llama2_7b_finetune", "document_mask-", (0.75, 0.90)),
    ],
)
def test_what_ran_is_below_the_limit(case: str, run: str, share: tuple[float, float]) -> None:
    found = composed(record_of(case, run)).share
    assert found is not None
    assert share[0] < found < share[1]  # at the rates that products reach on an H200


@pytest.mark.parametrize("run", ["finetune_tuned-", "pretrain-"])
def test_images_and_real_tokens_do_the_flops_that_mfu_counts(run: str) -> None:
    record = record_of("llava1_5_13b", run)
    assert record.plan is not None
    parts = step_parts(record.plan, record.throughput)
    products = (*parts.products, parts.head)
    done = sum((1 + len(p.gradients)) * p.flops * p.times for p in products)
    own, tower = parts.attentions
    done += own.flops * own.times * 6 / 7  # one product of the backward is done again
    # The count has a projected token for each token, and no attention of the tower.
    assert done == pytest.approx(record.mfu.flops_per_token["causal"] * parts.tokens, rel=2e-3)
    assert 0 < tower.flops * tower.times < 0.01 * done
    frozen = {product.gradients for product in products if product.name.startswith("tower")}
    assert frozen == {()}


@pytest.mark.parametrize("run", ["finetune_tuned-", "pretrain-"])
def test_a_stage_updates_what_it_trains(run: str) -> None:
    record = record_of("llava1_5_13b", run)
    assert record.plan is not None
    assert record.parameters is not None
    parts = step_parts(record.plan, record.throughput)
    assert parts.optimizer_bytes == 38 * record.parameters.trainable / 4


def test_a_run_of_images_has_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of("llava1_5_13b", "finetune_tuned-")
    assert record.plan is not None
    (tmp_path / PLAN_FILE).write_text(record.plan.model_dump_json())
    (tmp_path / RECORD_FILE).write_text(record.model_dump_json())
    monkeypatch.setattr(roofline, "time_chips", lambda _, parts, seconds: [timed(parts, ExactChip(), "exact")])
    assert roofline.main([str(tmp_path), "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("llava*.json")
    found = roofline.Roofline.model_validate_json(file.read_bytes())
    assert found.share == composed(record).share
    assert "tower: attention (exact)" in [one.name for one in found.measured]


@pytest.mark.parametrize(
    ("case", "config", "run"),
    [("llava1_5_13b", "H200x1x4", "finetune_tuned"), ("llama2_7b_finetune", "H200x1x1", "document_mask")],
)
def test_lengths_that_vary_have_to_be_measured(case: str, config: str, run: str) -> None:
    with pytest.raises(UsageError, match=f"run {run} of .*: its sequences vary in length") as raised:
        step_parts(plan_of(case, config, run))
    assert "give the folder of a run" in raised.value.fix


def test_numbers_in_8_bits_cost_a_cast() -> None:
    fp8, bf16 = (step_parts(plan_of("llama2_7b", "H200x1x1", run)) for run in ("tuned_fp8", "tuned"))
    assert {product.fp8 for product in fp8.products} == {True}
    assert not fp8.head.fp8
    assert fp8.optimizer_bytes == bf16.optimizer_bytes
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    taken = 2 + 2 + 4 + 4  # two norms, what attention reads and writes: bytes a number of hidden's
    rotated_and_value = 2 * 2 + 4
    per_token = (taken + 4 + rotated_and_value) * 4096 + (4 + 6) * 11008
    cast = 4 * weights + 32 * 12_288 * per_token
    assert fp8.layer_bytes - bf16.layer_bytes == pytest.approx(cast, rel=1e-4)


def test_products_in_8_bits_are_those_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    float8 = pytest.importorskip("torchao.float8")
    from tests.benchmarks.chip_speed import ChipSpeed

    seen: list[tuple[object, ...]] = []
    multiply = torch._scaled_mm

    def record(left, right, **given):  # type: ignore[no-untyped-def]
        fast, out = given["use_fast_accum"], given["out_dtype"]
        seen.append((left.shape, left.stride(), left.dtype, right.shape, right.stride(), right.dtype, fast, out))
        return multiply(left, right, **given)

    monkeypatch.setattr(torch, "_scaled_mm", record)
    layer = torch.nn.Sequential(torch.nn.Linear(32, 64, bias=False, dtype=torch.bfloat16))
    config = float8.Float8LinearConfig.from_recipe_name("tensorwise")
    float8.convert_to_float8_training(layer, config=config)
    states = torch.randn(48, 32, dtype=torch.bfloat16, requires_grad=True)
    layer(states).sum().backward()
    trained, seen = list(seen), []
    assert len(trained) == 3
    speed = ChipSpeed(torch.device("cpu"), torch.bfloat16, 1e-6)
    assert len(speed.product_s(Product("any", 48, 32, 64, 1, fp8=True))) == 3
    assert list(dict.fromkeys(seen)) == trained


def test_a_tower_attends_to_all_patches_and_only_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from tests.benchmarks import chip_speed

    seen: list[tuple[bool, bool]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def record(*states, is_causal, enable_gqa):  # type: ignore[no-untyped-def]
        seen.append((is_causal, torch.is_grad_enabled()))
        return attend(*states, is_causal=is_causal, enable_gqa=enable_gqa)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    speed = chip_speed.ChipSpeed(torch.device("cpu"), torch.float32, 1e-6)
    for tower in (True, False):
        assert speed.attention_s(AttentionShape("any", 1, 2, 2, 17, 8, 1, tower))[0] > 0
        assert set(seen) == {(not tower, not tower)}
        seen.clear()


def test_a_product_in_8_bits_is_the_product_but_for_rounding() -> None:
    torch = pytest.importorskip("torch")
    from tests.benchmarks.chip_speed import in_8_bits

    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.randn(*shape, dtype=torch.bfloat16, generator=generator) for shape in ((48, 256), (256, 64))
    )
    for forward, error in ((True, 0.05), (False, 0.1)):
        found = in_8_bits(left, right, forward=forward)()
        assert found.dtype == torch.bfloat16
        difference = (found - left @ right).norm() / (left @ right).norm()
        assert 0 < difference < error


def test_a_run_on_a_cpu_stays_below_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    words = ["llama2_7b", "--config", "CPUx1x1", "--run", "align", "--seconds", "0.02", "--out", str(tmp_path)]
    mode = torch.get_float32_matmul_precision()
    try:
        assert roofline.main(words) == 0
    finally:
        torch.set_float32_matmul_precision(mode)
    found = roofline.Roofline.model_validate(json.loads((tmp_path / "llama2_7b-CPUx1x1-align.json").read_text()))
    assert set(found.seconds) == {"matrix_products", "attention", "loss", "memory_bound", "optimizer"}
    assert min(found.seconds.values()) > 0
    assert "token/p/s." in capsys.readouterr().out
