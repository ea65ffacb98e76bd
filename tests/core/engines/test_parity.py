"""One seed and one global batch: the same losses and gradient norms on one rank and on two, on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.core.engines.conftest import RunJob

TOLERANCE = 2e-4
LAYOUTS = {
    "DDP": ("torch", {"zero_stage": 0}),
    "FSDP2 stage 2": ("torch", {"zero_stage": 2}),
    "FSDP2 stage 3": ("torch", {"zero_stage": 3}),
    "FSDP2 stage 3, a layer stays gathered": ("torch", {"zero_stage": 3, "gathered_layers": 1}),
    "DeepSpeed stage 0": ("deepspeed", {"zero_stage": 0}),
    "ZeRO-1": ("deepspeed", {"zero_stage": 1}),
    "ZeRO-2": ("deepspeed", {"zero_stage": 2}),
    "ZeRO-3": ("deepspeed", {"zero_stage": 3}),
}


def layouts(*names: str) -> list[object]:
    """Parameters for tests, marked for what they need."""
    return [
        pytest.param(name, marks=pytest.mark.deepspeed if LAYOUTS[name][0] == "deepspeed" else ())
        for name in names
    ]


@pytest.mark.parametrize("layout", layouts(*LAYOUTS))
def test_two_ranks_train_as_one(layout: str, run_job: RunJob) -> None:
    engine, sets = LAYOUTS[layout]
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    one = run_job("torch", 1, {"zero_stage": 0})
    two = run_job(engine, 2, sets)
    assert two["losses"] == pytest.approx(one["losses"], rel=TOLERANCE)
    assert two["norms"] == pytest.approx(one["norms"], rel=TOLERANCE * 10)
    assert one["losses"][-1] < one["losses"][0]


@pytest.mark.parametrize(
    ("stage", "precision", "state"),
    [(3, "fp32", "fp32"), (3, "bf16", "fp32"), (2, "bf16", "fp32"), (2, "bf16", "bf16_stochastic")],
)
def test_copies_between_peers_reduce_as_collectives_do(
    stage: int, precision: str, state: str, run_job: RunJob, tmp_path: Path
) -> None:
    sets = {"zero_stage": stage, "precision": precision, "optimizer_state": state}
    sets |= {"model.intermediate_size": 49}  # one row more on a rank
    library = run_job("torch", 2, sets)
    assert not list(tmp_path.glob("window-*"))
    copies = run_job("torch", 2, sets | {"collectives": "peer_copies"})
    assert list(tmp_path.glob("window-*"))  # through these they went
    if state == "bf16_stochastic":  # other weights get this noise, and FSDP2 rounds a mean before adding it up
        assert copies["losses"] == pytest.approx(library["losses"], rel=2e-3)
        assert copies["norms"] == pytest.approx(library["norms"], rel=2e-2)
    else:
        assert copies["losses"] == library["losses"]  # two terms add up to the same in any order
        assert copies["norms"] == library["norms"]


@pytest.mark.parametrize("layout", layouts("DDP", "ZeRO-2"))
def test_a_mean_of_means_is_caught(layout: str, run_job: RunJob) -> None:
    engine, sets = LAYOUTS[layout]
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    one = run_job("torch", 1, {"zero_stage": 0})
    faulty = run_job(engine, 2, sets, fault="mean_of_means")
    assert faulty["losses"] != pytest.approx(one["losses"], rel=TOLERANCE)
    assert faulty["norms"] != pytest.approx(one["norms"], rel=TOLERANCE * 10)
