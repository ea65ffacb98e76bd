"""Runs of every variant, trained once a session; and small records, references and run folders made by hand."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.align.references import make_reference
from core.events import EventLog
from core.record import build_record
from core.worker import PLAN_FILE
from schemas import event as ev
from schemas.plan import Plan
from schemas.record import Loss, Record
from schemas.reference import ReferenceCurve
from tests.conftest import python_path
from tests.core.align.variants import GROUPS, VARIANTS

STEPS = 60
LOSSES = tuple(2.0 + 4.0 * 0.95**step for step in range(STEPS))
NORMS = tuple(1.0 + 1.0 / (1 + step) for step in range(STEPS))
DATA, WEIGHTS = "da" * 32, "ab" * 32
CASE = """
from schemas.base import Text
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec

CASE = Case(
    name="toy",
    task=Text(zh="玩具", en="A toy"),
    model=DecoderSpec(
        factory="m:f", nominal_parameters=7, hidden_size=64, intermediate_size=96, num_layers=4,
        num_heads=4, num_kv_heads=4, vocab_size=100, max_positions=4096, norm_eps=1e-5,
    ),
    tokenizer=TokenizerSpec(vocab_size=100, add_bos=True, add_eos=False, source="the released model"),
    data=DataSpec(name="texts", description=Text(zh="文", en="texts"), source="its authors"),
    hyper_parameters=HyperParameters(precision="bf16", local_batch_size=1, sequence_length=64, learning_rate=1e-3),
    reference="the paper",
)
"""

Trained = Callable[[str], Path]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run folder of a variant; training it trains all of its group that have the same number of ranks.

    pytest's own processes (xdist) share what one of them has trained.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "align"
    folder.mkdir(exist_ok=True)

    def run_dir(name: str) -> Path:
        world = VARIANTS[name].world
        group = next(group for group in GROUPS if name in group)
        names = [other for other in group if VARIANTS[other].world == world]
        with (folder / f"lock {names[0]}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / names[0]).is_dir():
                train(folder, world, names)
        return folder / name

    return run_dir


@pytest.fixture
def record(trained: Trained) -> Callable[[str], Record]:
    """The record of a variant."""
    return lambda name: build_record(trained(name))


def train(folder: Path, world: int, names: list[str]) -> None:
    store = folder / f"store {names[0]}"
    command = [sys.executable, str(Path(__file__).with_name("job.py")), str(folder), str(store), *names]
    base = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
    base["ACCELMARK_CACHE"] = str(folder / "cache")
    ranks = [
        subprocess.Popen(
            command,
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(text[-3000:] for text in said)


@pytest.fixture
def planned(make_plan: Callable[..., Plan], tmp_path: Path) -> Callable[..., Plan]:
    """The plan of 60 steps on one chip, of a case in ``tmp_path``; ``hp`` go over its hyper-parameters."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "__init__.py").write_text(CASE, encoding="utf-8")

    def make(hp: dict[str, Any] | None = None, **changes: Any) -> Plan:
        settings = {"precision": "fp32", "measure.warmup_steps": 5, "measure.steps": STEPS - 5}
        plan = make_plan(topology="X1x1x1", engine="torch", defaults={"zero_stage": 0}, sets=settings | (hp or {}))
        return plan.model_copy(update={"case_location": str(folder)} | changes)

    return make


@pytest.fixture
def make_record(planned: Callable[..., Plan]) -> Callable[..., Record]:
    """A record with the curves that the reference has; ``losses`` and ``norms`` are others."""

    def make(plan: Plan | None = None, losses: Any = LOSSES, norms: Any = NORMS, /, **changes: Any) -> Record:
        plan = plan or planned()
        values: dict[str, Any] = {
            "id": "toy-run", "status": "ok", "source": "measured", "official": False, "scaled_down": False,
            "emulated": False, "weights": "random", "data": "generated", "case": plan.case, "vendor": plan.vendor,
            "chip": "X1", "topology": plan.topology, "engine": plan.engine, "run": plan.run,
            "precision": plan.hyper_parameters.precision, "parallel": plan.parallel,
            "loss": Loss(curve=losses, grad_norm_curve=norms), "data_manifest_sha256": DATA,
            "weights_sha256": WEIGHTS, "plan": plan,
        }  # fmt: skip
        return Record(**(values | changes))

    return make


@pytest.fixture
def reference(make_record: Callable[..., Record]) -> ReferenceCurve:
    """Of a run in fp32."""
    return make_reference(make_record(), "curve")


@pytest.fixture
def make_run_dir(planned: Callable[..., Plan], tmp_path: Path) -> Callable[..., Path]:
    """The folder of a run that ended well, with the curves that the reference has times ``factor``."""

    def make(factor: float = 1.0, steps: int = STEPS, hp: dict[str, Any] | None = None) -> Path:
        run_dir = tmp_path / f"run-{factor}-{steps}"
        run_dir.mkdir()
        (run_dir / PLAN_FILE).write_text(planned(hp).model_dump_json(), encoding="utf-8")
        log = EventLog(run_dir, 0)
        log.emit(ev.DataEvent, data="generated", manifest_sha256=DATA, sequences=512, tokens=10**6)
        log.emit(
            ev.ModelEvent, parameters_total=1000, parameters_trainable=1000, parameters_embedding=200,
            weights="random", optimizer="acme.AdamW", weights_sha256=WEIGHTS,
        )  # fmt: skip
        for step in range(steps):
            log.emit(
                ev.StepEvent, phase="measure", step=step + 1, total_steps=steps, step_time_s=1.0,
                loss=LOSSES[step] * factor, grad_norm=NORMS[step] * factor, learning_rate=1e-3, label_tokens=100,
                real_tokens=100, padded_tokens=0,
            )  # fmt: skip
        log.emit(ev.WindowEvent, window_s=60.0, steps=steps, real_tokens=6000, padded_tokens=0, epochs=0)
        log.emit(ev.FinishEvent)
        log.close()
        return run_dir

    return make
