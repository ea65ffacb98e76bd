"""The limit: what a step is composed of, by arithmetic; and one small run below its limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core import metrics
from core import plan as planning
from core.errors import UsageError
from core.layout import count_parameters
from core.report.load import load_records
from core.selection import Selection, choose
from schemas.plan import Plan
from schemas.record import Parameters
from tests.benchmarks import roofline
from tests.benchmarks.step_parts import AttentionShape, Product, step_parts

ROOT = Path(__file__).parents[2]
FLOPS, BYTES = 700e12, 4e12


class ExactChip:
    """As fast as it is said to be."""

    def product_s(self, product: Product) -> tuple[float, ...]:
        return (product.flops / FLOPS,) * (3 if product.trained else 2)

    def attention_s(self, shape: AttentionShape) -> tuple[float, str]:
        return shape.flops / FLOPS, "exact"

    def bytes_per_s(self) -> float:
        return BYTES


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
    scores = parts.attention.flops * parts.attention.times * 6 / 7  # one product of the backward is done again
    assert done + scores == pytest.approx(causal, rel=1e-4)  # but for the norms' weights


def test_a_step_is_the_sum_of_its_parts() -> None:
    plan = plan_of("llama2_7b", "H200x1x1")
    found = roofline.compose(plan, step_parts(plan), ExactChip(), "exact")
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
        roofline.compose(plan, step_parts(plan), ExactChip(), "exact").tokens_per_second_per_chip
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
    assert not any(product.trained for product in parts.products)


def test_a_share_is_of_the_record_that_lies_in_the_run() -> None:
    records = load_records(ROOT / "cases" / "llama2_7b" / "records")
    record = next(r for name, r in records.items() if "H200x1x1-tuned" in name)
    assert record.plan is not None
    assert record.throughput is not None
    found = roofline.compose(record.plan, step_parts(record.plan), ExactChip(), "exact", record)
    rate = record.throughput.tokens_per_second_per_chip
    assert found.share == pytest.approx(rate / found.tokens_per_second_per_chip)
    assert f"Run `{record.id}` reaches" in roofline.table(found)


def test_images_are_refused() -> None:
    with pytest.raises(UsageError, match="the parts of images"):
        step_parts(plan_of("llava1_5_13b", "H200x1x4", "finetune_tuned"))


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
