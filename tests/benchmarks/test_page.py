"""The measured part of docs/speed.md is what the committed results and records say."""

from __future__ import annotations

from pathlib import Path

from core import plan as planning
from core.selection import Selection, choose
from schemas.record import Record
from tests.benchmarks import page
from tests.benchmarks.overhead import Overhead
from tests.benchmarks.test_roofline import limit_of, plan_of
from tests.benchmarks.test_side_by_side import compared, result


def test_the_page_is_what_is_rendered() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    part = page.measured(page.RESULTS, page.committed_records())
    assert text == page.rewritten(text, part), "run python -m tests.benchmarks.page --write"


def test_every_kind_of_result_has_its_table(tmp_path: Path) -> None:
    (request,) = choose(Selection("llama2_7b", "H200x1x1", "tuned"), print)
    plan = planning.build(request)
    record = next(r for r in page.committed_records() if "llama2_7b-H200x1x1-tuned" in r.id)
    record = record.model_copy(update={"startup_seconds": {"launch": 1.5, "first_step": 20.0}})
    overhead = Overhead(
        case="llama2_7b", topology="H200x1x1", run="tuned", engine="torch", steps=5, ours_s=(1.0,), bare_s=(0.99,),
        added=0.01, bound=0.012, limit=0.005, waits={"core/loop.py:1": 2},
    )  # fmt: skip
    found = {
        "side_by_side": compared(easy=(result(12_800),), ours=(result(13_440),)),
        "roofline": limit_of(plan, record=record),
        "overhead": overhead,
    }
    for kind, one in found.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "one.json").write_text(one.model_dump_json())
    text = page.measured(tmp_path, [record])
    assert "Ours is 1.050 times the best other" in text
    assert "| llama2_7b H200x1x1 tuned | torch | +1.00% | +1.20% | 0.5% | 2 x core/loop.py:1 |" in text
    assert record.throughput is not None
    rate = record.throughput.tokens_per_second_per_chip
    assert f"| llama2_7b H200x1x1 tuned | {rate:,.0f} | " in text
    assert "| llama2_7b H200x1x1 tuned | 21.5 | 1.5 | / | / | / | / | 20.0 | / |" in text


def test_a_limit_tells_on_how_many_chips_it_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "roofline"
    folder.mkdir()
    four = limit_of(plan_of("llama2_7b", "H200x1x4"), 1.0, 0.97, 1.01, 0.99)
    before = four.model_dump_json(exclude={"tokens_per_second_by_chip"})
    for name, limit in (("four", four.model_dump_json()), ("one_as_it_was_kept_before", before)):
        (folder / f"{name}.json").write_text(limit)
    text = page.measured(tmp_path, [])
    for chips in ("4 of 4", "1 of 4"):
        assert f"| llama2_7b H200x1x4 tuned | / | {four.tokens_per_second_per_chip:,.0f} | {chips} | / |" in text


def test_efficiency_compares_chips_that_do_the_same_work() -> None:
    def fast(record: Record, chips: int, rate: float, split: tuple[int, int], **settings: str) -> Record:
        assert record.throughput is not None
        assert record.plan is not None
        topology = record.topology.model_copy(update={"chips_per_node": chips})
        parallel = record.parallel.model_copy(update={"dp": chips})
        throughput = record.throughput.model_copy(update={"tokens_per_second_per_chip": rate})
        local, accumulated = split
        changed = {
            "local_batch_size": local,
            "gradient_accumulation_steps": accumulated,
            **settings,
        }
        hp = record.plan.hyper_parameters.model_copy(update=changed)
        plan = record.plan.model_copy(update={"hyper_parameters": hp})
        update = {"topology": topology, "parallel": parallel, "throughput": throughput, "plan": plan}
        return record.model_copy(update=update)

    records = page.committed_records()
    llama2 = next(r for r in records if "llama2_7b-H200x1x4-tuned" in r.id)
    baichuan2 = next(r for r in records if "baichuan2_13b-H200x1x4-tuned" in r.id)
    known = [
        fast(llama2, 2, 12_000, (3, 1)),
        fast(llama2, 4, 11_000, (3, 1)),
        fast(llama2, 4, 11_940, (1, 3)),  # the same three sequences
        fast(llama2, 1, 13_000, (3, 2)),  # twice the work
        fast(llama2, 2, 12_500, (3, 1), collectives="library"),  # moved in another way
        fast(  # which moves nothing
            *(baichuan2, 1, 6_400, (2, 4)),
            optimizer_state="bf16_stochastic",
            activation_checkpointing="none",
            collectives="library",
        ),
        fast(baichuan2, 2, 6_300, (1, 8), optimizer_state="bf16_stochastic", activation_checkpointing="full"),
        fast(baichuan2, 4, 6_111, (1, 8), optimizer_state="bf16_stochastic"),
        fast(baichuan2, 2, 4_000, (1, 8)),  # another state, on one number of chips only
    ]
    scale = page.measured(page.RESULTS, known).partition("### Scale")[2]
    assert "| 3 of 4096 | 2: 12,000 (3 x 1), 4: 11,940 (1 x 3) | 4 / 2: 99.5% |" in scale
    told = "1: 6,400 (2 x 4), 2: 6,300 (1 x 8, full), 4: 6,111 (1 x 8, selective) | 2 / 1: 98.4%, 4 / 2: 97.0%"
    assert f"| bf16_stochastic | vendor | peer_copies | 8 of 2048 | {told} |" in scale
    assert scale.count("H200") == 2
