"""Every chip of a run is timed, all at once, and the slowest sets the limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from schemas.chip import ProbeResult
from tests.benchmarks import chip_times, roofline
from tests.benchmarks.step_parts import step_parts
from tests.benchmarks.test_roofline import ExactChip, limit_of, plan_of
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]


def test_the_slowest_chip_sets_the_limit() -> None:
    plan = plan_of("baichuan2_13b", "H200x1x4")
    shares = (1.0, 0.99, 0.96, 1.02)
    found, slowest = limit_of(plan, *shares), limit_of(plan, 0.96)
    assert found.model_copy(update={"tokens_per_second_by_chip": slowest.tokens_per_second_by_chip}) == slowest
    assert found.device == "exact 0.96"
    best = limit_of(plan).tokens_per_second_per_chip
    assert found.tokens_per_second_by_chip == pytest.approx([best * share for share in shares])
    assert found.chips == (4, 4)
    told = ", ".join(f"{best * share:,.0f} on chip {index}" for index, share in enumerate(shares))
    assert f"the slowest of 4 chips, timed at once: {told}." in roofline.table(found)
    assert "visible" not in roofline.table(found)


@pytest.mark.parametrize("timed", [1, 2])
def test_chips_that_were_not_there_are_told(timed: int) -> None:
    found = limit_of(plan_of("baichuan2_13b", "H200x1x4"), *([1.0] * timed))
    assert found.chips == (timed, 4)
    assert f"Timed on {timed} of the run's 4 chips" in roofline.table(found)
    assert ("slowest" in roofline.table(found)) == (timed > 1)


def test_a_run_of_one_chip_tells_of_no_others() -> None:
    found = roofline.table(limit_of(plan_of("baichuan2_13b", "H200x1x1")))
    assert "slowest" not in found
    assert "Timed on" not in found


def test_chips_meet_before_each_part() -> None:
    parts, order = step_parts(plan_of("llama2_7b", "H200x1x4")), []

    class Told(ExactChip):
        def __getattribute__(self, name: str) -> object:
            order.append(name)
            return super().__getattribute__(name)

    chip_times.timed(parts, Told(), "told", lambda: order.append("meet"))
    asked = [name for name in order if name != "_share"]
    assert asked[::2] == ["meet"] * (len(parts.products) + 3)  # the head, attention, a copy
    assert asked[1::2] == ["product_s"] * (len(parts.products) + 1) + ["attention_s", "bytes_per_s"]


@pytest.mark.parametrize(
    ("config", "counts", "timed"),
    [
        ("H200x1x4", (4,), 4),
        ("H200x1x4", (8,), 4),
        ("H200x1x4", (1, 2), 3),  # names differ, the chip is one
        ("H200x1x4", (1,), 1),
        ("H200x1x4", (), 1),  # init_device says what is missing
        ("H200x1x4", (None,), 4),
        ("H200x1x1", (8,), 1),
    ],
)
def test_as_many_chips_are_timed_as_are_visible(
    config: str, counts: tuple[int | None, ...], timed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("llama2_7b", config)
    here = [ProbeResult(chip="H200", device_name=f"H200 {i}", count=count) for i, count in enumerate(counts)]
    probed = [*here, ProbeResult(chip="A100", device_name="A100", count=8)]
    by_workers: list[int] = []

    def at_once(work: Callable[[int, chip_times.Meet], int], times: int) -> list[int]:
        by_workers.append(times)
        return [work(index, chip_times.alone) for index in range(times)]

    monkeypatch.setattr(chip_times, "load_alone", lambda *_: SimpleNamespace(probe=lambda: probed))
    monkeypatch.setattr(chip_times, "at_once", at_once)
    monkeypatch.setattr(chip_times, "_times", lambda plan, parts, seconds, index, meet: index)
    for name in plan.launch_env:
        monkeypatch.setenv(name, "as it was")
    assert chip_times.time_chips(plan, step_parts(plan), 1.0) == list(range(timed))
    assert by_workers == ([timed] if timed > 1 else [])  # one alone needs no other process


def test_two_chips_are_timed_by_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = ["llama2_7b", "--config", "CPUx1x2", "--run", "base", "--seconds", "0.01", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.roofline", *words],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": python_path()}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the slowest of 2 chips, timed at once" in done.stdout
    found = json.loads((tmp_path / "llama2_7b-CPUx1x2-base.json").read_text())
    assert len(set(found["tokens_per_second_by_chip"])) == 2
    assert found["tokens_per_second_per_chip"] == min(found["tokens_per_second_by_chip"])
