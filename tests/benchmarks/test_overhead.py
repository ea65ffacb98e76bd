"""What the framework adds to a step, and where its window waits for the device."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import torch

from core import plan as planning
from core.errors import UsageError
from core.selection import Selection, choose
from schemas.hyperparameters import Overrides
from tests.benchmarks.bare_loop import BareLoop
from tests.benchmarks.host_waits import counted_waits
from tests.benchmarks.overhead import Overhead, added_share, main
from tests.conftest import python_path

ROOT = Path(__file__).parents[2]
ATTEMPTS = 3
"""Other processes, which share the caches, can only make the bound look larger than it is."""
LONG_STEP = ("sequence_length=128", "model.hidden_size=128", "model.intermediate_size=352")
"""About 0.1 s, of which 3% can be told from noise."""


def overhead(tmp_path: Path, *words: str) -> Overhead:
    environment = os.environ | {"PYTHONPATH": python_path(), "ACCELMARK_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.overhead", "llama2_7b", *words, "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "added" in done.stdout, done.stderr
    return Overhead.model_validate_json((tmp_path / "llama2_7b-CPUx1x1-align-torch.json").read_text())


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a run of ``main`` sets is gone for other tests: LOCAL_RANK makes every process a launcher's rank."""
    before = set(os.environ)
    yield
    for name in os.environ.keys() - before:
        del os.environ[name]


def test_the_bound_of_five_shares_is_the_largest_and_of_many_an_order_statistic() -> None:
    ours = [1.01, 1.02, 1.03, 1.04, 1.05]
    added, bound = added_share(ours, [1.0] * 5)
    assert added == pytest.approx(0.03)
    assert bound == pytest.approx(0.05)
    added, bound = added_share([1 + n / 100 for n in range(20)], [1.0] * 20)
    assert added == pytest.approx(0.095)
    assert bound == pytest.approx(0.14)  # 15th of 20: at most 14 are below the median with probability 0.979


def test_too_few_alternations_give_no_bound() -> None:
    with pytest.raises(ValueError, match="take 5 or more"):
        added_share([1.0] * 4, [1.0] * 4)


def test_a_value_that_is_read_in_the_window_is_found_where_it_is_read() -> None:
    def window() -> None:
        for number in range(3):
            torch.ones(2).mul_(number).sum().item()

    (place,) = counted_waits(torch.device("cpu"), window).items()
    assert place[0].startswith("tests/benchmarks/test_overhead.py:")
    assert place[1] == 3


def test_on_cuda_torchs_own_warnings_are_counted_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def window() -> None:
        for _ in range(2):  # in the words of c10/cuda/CUDAFunctions.cpp
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    (place,) = counted_waits(torch.device("cuda"), window).items()
    assert place[0].startswith("tests/benchmarks/test_overhead.py:")
    assert place[1] == 2
    assert modes == ["warn", "default"]


@pytest.mark.parametrize(
    ("case", "run", "what"),
    [
        ("llama2_70b", "tp2pp2", "engine megatron, ZeRO stage 1, collectives library"),
        ("llama2_7b", "tuned", "engine torch, ZeRO stage 2, collectives peer_copies"),
    ],
)
def test_an_engine_whose_step_is_more_than_a_bare_loops_is_refused(case: str, run: str, what: str) -> None:
    sets: Overrides = {"collectives": "peer_copies"} if case == "llama2_7b" else {}
    (request,) = choose(Selection(case, "H200x1x4", run, sets=sets), print)
    with pytest.raises(UsageError, match=f"{what}, precision bf16 has no bare loop"):
        BareLoop(planning.build(request), SimpleNamespace(scaler=None), SimpleNamespace())  # type: ignore[arg-type]


def test_ranks_that_are_missing_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llama2_7b", "--config", "CPUx1x2", "--run", "base"]) == 3
    assert "the run needs 2 ranks, there are 1" in capsys.readouterr().err


def test_our_window_reads_no_value_back(tmp_path: Path) -> None:
    found = overhead(tmp_path, "--alternations", "5", "--steps", "1", "--set", "measure.warmup_steps=1")
    assert found.waits == {}
    assert len(found.ours_s) == len(found.bare_s) == 5


@pytest.mark.slow
def test_our_loop_adds_less_than_the_limit_to_a_step_on_a_cpu(tmp_path: Path) -> None:
    bounds = []
    sets = [word for value in LONG_STEP for word in ("--set", value)]
    for _ in range(ATTEMPTS):
        found = overhead(tmp_path, "--alternations", "40", "--steps", "4", *sets)
        bounds.append(found.bound)
        if found.bound <= found.limit:
            return
    pytest.fail(f"bounds {bounds}")
