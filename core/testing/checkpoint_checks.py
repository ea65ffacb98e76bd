"""The state of training, saved and gone on from, with core's own engine on one worker."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from core.cases import resolve
from core.checkpoint import folder as folders
from core.checkpoint import training
from core.data.loader import StepBatch
from core.engines.base import Engine, load_engine
from core.process_group import join
from core.testing.check import DeviceScene, FailedError
from schemas.hyperparameters import CheckpointFolders
from schemas.plan import Plan

SAVED_AFTER = 2
"""Steps: the weights have moved, and Adam's bias correction is not that of a first step."""
FURTHER = 2
WAY_ERROR = 0.02
"""Of the way that weights went after the checkpoint; without the moments they go tens of percent elsewhere."""


def state_goes_on(scene: DeviceScene) -> str:
    """A new engine that loads what one has saved takes the weights where the one goes that never stopped."""
    scene.prepare(scene.plan)
    with _alone(scene), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "saved"
        engine = _engine(scene, scene.plan)
        _train(engine, 0, SAVED_AFTER)
        training.save(engine, folder, training.Reached(SAVED_AFTER, "random", "0" * 64), _unheard)
        start = _weights(engine)
        _train(engine, SAVED_AFTER, FURTHER)
        unbroken = _weights(engine)
        engine = _engine(scene, scene.plan.model_copy(update={"checkpoint": CheckpointFolders(load=str(folder))}))
        training.load(engine, folder, folders.read(folder), _unheard)
        loaded = _weights(engine)
        _train(engine, SAVED_AFTER, FURTHER)
        resumed = _weights(engine)
    if not torch.equal(loaded, start):
        raise FailedError("the weights that were loaded are not those that were saved")
    error = float((resumed - unbroken).norm() / (unbroken - start).norm())
    if error > WAY_ERROR:
        raise FailedError(
            f"gone on from a checkpoint, the weights are off by {error:.1%} of the way: the optimizer that "
            "optimizer_wrap gives does not take back its state"
        )
    return "bit by bit" if torch.equal(resumed, unbroken) else f"within {error:.1e} of the way"


@contextmanager
def _alone(scene: DeviceScene) -> Iterator[None]:
    """A process group of this rank, which the engine asks for its size."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    join(scene.device, timedelta(seconds=60), store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _engine(scene: DeviceScene, plan: Plan) -> Engine:
    case = resolve(plan.case_location).case
    engine = load_engine("torch")(plan, scene.device)
    engine.setup(
        lambda stage: scene.vendor.build_model(case, plan, scene.device, stage),
        lambda optimizer, model: scene.vendor.optimizer_wrap(optimizer, model, plan, scene.device),
    )
    return engine


def _train(engine: Engine, done: int, steps: int) -> None:
    """Do the ``steps`` after the ``done`` first ones, on random tokens."""
    for number in range(done, done + steps):
        engine.step(_batch(engine, number), engine.hp.learning_rate)


def _weights(engine: Engine) -> Tensor:
    """All of them, flat, fp64, on the CPU."""
    return torch.cat([tensor.detach().cpu().double().flatten() for _, tensor in engine.gather("weights")])


def _batch(engine: Engine, number: int) -> StepBatch:
    hp = engine.hp
    generator = torch.Generator().manual_seed(number)
    shape = (hp.gradient_accumulation_steps, hp.local_batch_size, hp.sequence_length + 1)
    tokens = torch.randint(0, engine.plan.model.vocab_size, shape, generator=generator).to(engine.device)
    micro_batches = [{"input_ids": part[:, :-1], "labels": part[:, 1:]} for part in tokens]
    labels = shape[0] * shape[1] * hp.sequence_length
    return StepBatch(micro_batches=micro_batches, label_tokens=labels, real_tokens=labels, padded_tokens=0)


def _unheard(done: int, total: int) -> None:
    """Nobody watches."""
