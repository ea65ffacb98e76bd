"""Whatever befalls a run, it leaves a true record, in time, and no process."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.faults.catalog import FAULTS
from tests.faults.faults import Fault, Scene, play

CASES = [
    pytest.param(
        fault, engine, id=f"{fault.name}-{engine}", marks=[pytest.mark.deepspeed][: engine == "deepspeed"]
    )
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
