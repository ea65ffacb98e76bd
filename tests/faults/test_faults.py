"""Whatever befalls a run, it leaves a true record, in time, and no process."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.faults.catalog import FAULTS
from tests.faults.faults import Fault, Scene, play

QUICK = {
    "rank_killed", "launcher_killed", "nan_loss", "hang_inside_collective", "ctrl_c", "file_size_limit",
    "read_only_run_folder", "config_raises", "corrupt_tokens", "clock_jumps",
}  # fmt: skip
"""One of each kind; the others, and all but one on DeepSpeed, take many minutes together."""


def marks(fault: Fault, engine: str) -> list[pytest.MarkDecorator]:
    if engine == "deepspeed":
        return [pytest.mark.deepspeed] + [pytest.mark.slow] * (fault.name != "rank_killed")
    return [] if fault.name in QUICK else [pytest.mark.slow]


CASES = [
    pytest.param(fault, engine, id=f"{fault.name}-{engine}", marks=marks(fault, engine))
    for fault in FAULTS
    for engine in fault.engines
]


@pytest.mark.parametrize(("fault", "engine"), CASES)
def test_a_fault_leaves_a_true_record_in_time(
    fault: Fault, engine: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip(engine)
    if why := fault.unless():
        pytest.skip(why)
    wrong, _ = play(fault, engine, Scene(tmp_path, tmp_path_factory.getbasetemp() / "accelmark-cache"))
    assert wrong == []
