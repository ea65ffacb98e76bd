"""The state of a run, from an engine into a checkpoint's folder and back.

Every rank takes part in both; rank 0 alone writes, and every rank reads what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from core.checkpoint import folder as folders
from core.checkpoint.shards import ShardWriter, sync, write_text
from core.engines.base import Engine
from core.models.factory import build_decoder
from core.optimizer_state import loss_scale, set_loss_scale, set_updates, updates
from schemas.checkpoint import Checkpoint, Part


class Reached(NamedTuple):
    """How far training has come, from where, and on what data."""

    step: int
    weights: Literal["random", "pretrained"]
    data_manifest_sha256: str


Progress = Callable[[int, int], None]
"""Is told how many of how many parts are done."""


def save(engine: Engine, folder: Path, reached: Reached, progress: Progress) -> None:
    """Write the engine's state into ``folder``, which must not be there; UsageError where it cannot be.

    Until all of it is on the disk, it lies in a folder of another name.
    """
    partial = folders.partial_folder(folder)
    writes = dist.get_rank() == 0
    if writes:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise folders.cannot_write(partial, error) from error
    dtypes = {}
    for number, part in enumerate(engine.parts, start=1):
        dtypes[part] = save_part(engine, part, folders.part_folder(partial, part))
        progress(number, len(engine.parts))
    states = _all_generators(engine.device)
    if writes:
        rng = ShardWriter(partial / folders.RNG)
        for rank, state in enumerate(states):
            rng.add(_of_rank(rank), state)
        rng.finish()
        checkpoint = Checkpoint(
            step=reached.step,
            updates=updates(engine.optimizers),
            loss_scale=None if engine.scaler is None else loss_scale(engine.scaler),
            weights=reached.weights,
            data_manifest_sha256=reached.data_manifest_sha256,
            parts=engine.parts,
            plan=engine.plan,
        )
        _complete(partial, folder, checkpoint, dtypes["weights"])
    dist.barrier()


def save_part(engine: Engine, part: Part, folder: Path) -> torch.dtype | None:
    """Write one part's safetensors into ``folder`` on rank 0; all ranks take part. The type, where it is known."""
    writer = ShardWriter(folder) if dist.get_rank() == 0 else None
    for name, tensor in engine.gather(part):
        if writer is not None:
            writer.add(name, tensor)
    if writer is None:
        return None
    writer.finish()
    return writer.dtype


def load(engine: Engine, folder: Path, checkpoint: Checkpoint, progress: Progress) -> None:
    """Give ``engine`` the state that it went on with after ``checkpoint.step``; ``setup`` has read the weights.

    How the model was split over ranks when it was saved does not matter.
    """
    engine.allocate_state()
    for number, part in enumerate(engine.parts, start=1):
        if part == "main_weights":
            engine.restore(part, folders.exact_weights(folder))
        elif part != "weights":
            engine.restore(part, folders.part_folder(folder, part))
        progress(number, len(engine.parts))
    set_updates(engine.optimizers, checkpoint.updates)
    if engine.scaler is not None and checkpoint.loss_scale is not None:
        set_loss_scale(engine.scaler, checkpoint.loss_scale)
    _restore_generator(engine, folder, checkpoint)


def _complete(partial: Path, folder: Path, checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
    """Write what makes a checkpoint of the parts, and give the folder its name."""
    plan = checkpoint.plan
    config = build_decoder(plan).transformers_config() if plan.lora is None else None
    try:
        if config is not None:
            config["dtype"] = str(dtype).removeprefix("torch.")
            write_text(partial / folders.CONFIG, json.dumps(config, indent=2) + "\n")
        write_text(partial / folders.MANIFEST, checkpoint.model_dump_json(indent=2) + "\n")
        sync(partial)
        partial.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise folders.cannot_write(folder, error) from error


def _all_generators(device: torch.device) -> list[Tensor]:
    """The state of every rank's generator on ``device``: what stochastic rounding and dropout draw from."""
    own = _generator_state(device).to(device)
    states = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(states, own)
    return states


def _restore_generator(engine: Engine, folder: Path, checkpoint: Checkpoint) -> None:
    """Draw on as the same rank did; another layout, or another type of device, has no such rank."""
    own, saved = engine.plan, checkpoint.plan
    if (own.parallel, own.engine, own.vendor) != (saved.parallel, saved.engine, saved.vendor):
        return
    with safe_open(folder / folders.RNG / "model.safetensors", framework="pt") as reader:
        state = reader.get_tensor(_of_rank(dist.get_rank()))
    if engine.device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(engine.device).set_rng_state(state)


def _generator_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state()
    return state


def _of_rank(rank: int) -> str:
    return f"rank{rank:05d}"
