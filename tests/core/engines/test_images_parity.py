"""LLaVA with images on some ranks only: two ranks train as one process, and none waits for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

from tests.core.engines.conftest import launch

TOLERANCE = 2e-4
STEPS = 5
PATIENCE_S = 60
SHORT_S = 5
"""Of a job in which ranks are meant to miss each other."""


def train(folder: Path, world: int, *layouts: tuple[str, str], **changes: Any) -> Any:
    job = {"layouts": layouts, "steps": STEPS, "fault": False, "patience_s": PATIENCE_S} | changes
    return launch(folder, "images_job", world, job)


def check(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert two["losses"] == pytest.approx(one["losses"], rel=TOLERANCE)
    assert two["norms"] == pytest.approx(one["norms"], rel=TOLERANCE * 10)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process finds."""
    return train(tmp_path_factory.mktemp("one"), 1, ("one", "finetune"), ("one", "pretrain"))


def test_sharded_by_torch(one: Any, tmp_path: Path) -> None:
    layouts = (("FSDP2", "finetune"), ("FSDP2 compiled", "finetune"), ("DDP", "finetune"))
    two = train(tmp_path, 2, *layouts, ("FSDP2 stage 2", "pretrain"))
    check(two["FSDP2 compiled finetune"], one["one finetune"])
    check(two["FSDP2 finetune"], one["one finetune"])
    check(two["FSDP2 stage 2 pretrain"], one["one pretrain"])
    check(two["DDP finetune"], one["one finetune"])
    assert one["one finetune"]["losses"][4] < one["one finetune"]["losses"][0]


@pytest.mark.deepspeed
def test_sharded_by_deepspeed(one: Any, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    two = train(tmp_path, 2, ("ZeRO-3", "finetune"), ("ZeRO-2", "pretrain"))
    check(two["ZeRO-3 finetune"], one["one finetune"])
    check(two["ZeRO-2 pretrain"], one["one pretrain"])


@pytest.mark.parametrize(
    "layout", ["FSDP2", pytest.param("ZeRO-3", marks=[pytest.mark.deepspeed, pytest.mark.slow])]
)
def test_a_rank_that_skips_the_vision_path_is_noticed(layout: str, one: Any, tmp_path: Path) -> None:
    if layout == "ZeRO-3":
        pytest.importorskip("deepspeed")
    with pytest.raises(AssertionError):
        compared(tmp_path, layout, one)


def compared(folder: Path, layout: str, one: Any) -> None:
    two = train(folder, 2, (layout, "finetune"), fault=True, patience_s=SHORT_S)
    check(two[f"{layout} finetune"], one["one finetune"])
