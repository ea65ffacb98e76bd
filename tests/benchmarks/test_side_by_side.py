"""The comparison: who competes at what work, what is made of the results, and one small one from end to end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core import plan as planning
from core.errors import UsageError
from core.selection import Selection, choose
from schemas.plan import Plan
from tests.benchmarks import side_by_side
from tests.benchmarks.contenders.ours import from_record
from tests.benchmarks.lineup import Contender, lineup
from tests.benchmarks.tables import side_by_side as table
from tests.benchmarks.tables import verdict
from tests.benchmarks.work import Comparison, Measured, Result, Work
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]


def plan_of(case: str, config: str, run: str = "tuned") -> Plan:
    (request,) = choose(Selection(case, config, run), print)
    return planning.build(request)


def work_of(case: str, config: str) -> Work:
    return Work.of(plan_of(case, config))


def result(rate: float) -> Result:
    versions = {"torch": "2.11.0"}
    return Result(
        status="ok",
        micro_batch=3,
        tokens_per_second_per_gpu=rate,
        first_loss=10.4,
        last_loss=10.3,
        versions=versions,
    )


def compared(**results: tuple[Result, ...]) -> Comparison:
    return Comparison(
        command="x",
        started_unix_s=1.0,
        topology="H200x1x1",
        work=work_of("llama2_7b", "H200x1x1"),
        contenders=tuple(Measured(name=name, what="it", results=found) for name, found in results.items()),
    )


@pytest.mark.parametrize(
    ("case", "config", "state", "tokens"),
    [
        ("llama2_7b", "H200x1x1", "bf16", 12_288),
        ("llama2_7b", "H200x1x4", "fp32", 12_288),
        ("baichuan2_13b", "H200x1x1", "bf16", 16_384),
        ("baichuan2_13b", "H200x1x4", "fp32", 16_384),
    ],
)
def test_the_tuned_rows_are_the_work_that_is_compared(case: str, config: str, state: str, tokens: int) -> None:
    work = work_of(case, config)
    assert (work.optimizer_state, work.tokens_per_step, work.device) == (state, tokens, "cuda")


def test_work_that_others_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match="parallel TP2PP2DP1, schedule or missing clip"):
        Work.of(plan_of("llama2_70b", "H200x1x4", "tp2pp2"))
    with pytest.raises(UsageError, match="LoRA or images"):
        Work.of(plan_of("llama2_7b_finetune", "H200x1x1"))


def test_ours_comes_last_and_torchtitan_competes_for_llama_only() -> None:
    llama = [contender.name for contender in lineup(work_of("llama2_7b", "H200x1x1"))]
    baichuan2 = [contender.name for contender in lineup(work_of("baichuan2_13b", "H200x1x4"))]
    assert llama == ["published_eager", "published_sdpa", "easy", "torchtitan", "ours"]
    assert baichuan2 == ["published_eager", "published_sdpa", "easy", "ours"]


def test_one_chip_without_room_for_deepspeeds_copies_of_13b_gets_a_plain_loop() -> None:
    one, four = (lineup(work_of("baichuan2_13b", config)) for config in ("H200x1x1", "H200x1x4"))
    assert {contender.module for contender in one} == {"plain_loop", "ours"}
    assert {contender.module for contender in four} == {"deepspeed_recipe", "plain_loop", "ours"}


def test_micro_batches_divide_the_work_the_largest_first() -> None:
    work = work_of("baichuan2_13b", "H200x1x4")
    assert Contender("a", "", "plain_loop").micro_batches(work) == (8, 4, 2, 1)
    assert Contender("a", "", "plain_loop", largest_micro_batch=2).micro_batches(work) == (2, 1)


def test_a_micro_batch_that_does_not_fit_is_left_out_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(_: Any, __: Any, ___: Any, ____: Any, micro_batch: int) -> tuple[str, Result]:
        asked.append(micro_batch)
        return "x", Result(status="ok" if micro_batch == 1 else "oom", micro_batch=micro_batch)

    monkeypatch.setattr(side_by_side, "_measure", measure)
    sizes, work, none = [3, 1], work_of("llama2_7b", "H200x1x1"), Any
    for _ in range(2):
        _, found = side_by_side._until_it_fits(Contender("a", "", "plain_loop"), work, none, none, sizes)
        assert (found.status, found.micro_batch) == ("ok", 1)
    assert asked == [3, 1, 1]


def test_a_contender_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.monotonic()
    assert not side_by_side._run([sys.executable, "-c", script], dict(os.environ), tmp_path / "log", 1.0)
    assert time.monotonic() - began < 20
    assert side_by_side._run([sys.executable, "-c", "print('done')"], dict(os.environ), tmp_path / "log", 60.0)
    assert (tmp_path / "log").read_text() == "done\n"


def test_the_verdict_is_ours_over_the_best_other() -> None:
    found = compared(
        published_sdpa=(result(7_500), result(7_700)),
        easy=(result(12_700), result(12_900)),
        ours=(result(13_440), result(13_440)),
    )
    assert verdict(found) == "Ours is 1.050 times the best other, `easy`."
    assert "With torch 2.11.0." in table(found)
    assert "| `easy` | it | 3 | 12,800 | 2 | 1.6% | / | 10.40 to 10.30 | 1.05x |" in table(found)
    once = compared(easy=(result(12_800),))
    assert "| `easy` | it | 3 | 12,800 | 1 | / | / | 10.40 to 10.30 | / |" in table(once)


def test_who_was_not_measured_is_named_with_the_reason() -> None:
    absent = Result(status="not run", reason="torchtitan not installed", micro_batch=3)
    found = compared(torchtitan=(absent,), ours=(result(13_440),))
    assert verdict(found) == "Nothing to compare: no other contender was measured."
    assert "/ (not run: torchtitan not installed)" in table(found)
    assert verdict(compared(easy=(result(1),))) == "Nothing to compare: ours was not measured."


def test_an_unknown_contender_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert side_by_side.main(["llama2_7b", "--contenders", "easy,hf", "--out", str(tmp_path)]) == 2
    assert "no contender is called hf" in capsys.readouterr().err


def test_turns_are_added_to_those_of_the_same_work_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_measure", lambda *_: ("python -m x", result(100)))
    monkeypatch.setattr(Contender, "missing", lambda _: None)
    words = ["llama2_7b", "--alternations", "1", "--out", str(tmp_path)]
    assert side_by_side.main([*words, "--contenders", "easy,ours", "--add"]) == 2  # nothing to add to
    assert side_by_side.main([*words, "--contenders", "easy,ours"]) == 0
    assert side_by_side.main([*words, "--contenders", "ours,torchtitan", "--add"]) == 0
    assert side_by_side.main([*words, "--steps", "30", "--add"]) == 2  # other work
    found = Comparison.model_validate_json((tmp_path / "llama2_7b-H200x1x1.json").read_text())
    assert {one.name: len(one.results) for one in found.contenders} == {"easy": 1, "ours": 2, "torchtitan": 1}


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("case", "contenders"), [("llama2_7b", "published_sdpa,easy,ours"), ("baichuan2_13b", "published_eager,ours")]
)
def test_a_small_comparison_from_end_to_end(case: str, contenders: str, tmp_path: Path) -> None:
    for package in ("torch", "deepspeed", "transformers"):
        pytest.importorskip(package)
    words = [case, "--config", "CPUx1x1", "--run", "align", "--steps", "2", "--alternations", "1"]
    words += ["--set", "measure.warmup_steps=1", "--contenders", contenders, "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": python_path(), "ACCELMARK_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.side_by_side", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = Comparison.model_validate_json((tmp_path / f"{case}-CPUx1x1.json").read_text())
    measured = {one.name: one.results[0] for one in found.contenders}
    assert set(measured) == set(contenders.split(","))
    for one in measured.values():  # an untrained model of 512 words: the logarithm is 6.2
        assert one.tokens_per_second_per_gpu is not None
        assert one.first_loss == pytest.approx(6.2, abs=0.5)
    assert "times the best other" in done.stdout


def test_a_record_of_other_work_is_no_result() -> None:
    from core.report.load import load_records

    records = load_records(ROOT / "cases" / "llama2_7b" / "records")
    record = next(r for name, r in records.items() if "H200x1x1-tuned" in name)
    assert record.plan is not None
    work = Work.of(record.plan)
    found = from_record(record, work)
    assert (found.status, found.micro_batch) == ("ok", 3)
    assert record.throughput is not None
    assert found.tokens_per_second_per_gpu == record.throughput.tokens_per_second_per_chip
    assert from_record(record, work.model_copy(update={"sequences": 6})).status == "failed"
