"""A checkpoint's folder: where its parts lie, whether it is whole, and whether it is of the run at hand.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from core.errors import UsageError
from schemas.base import explain
from schemas.checkpoint import Checkpoint, Part
from schemas.plan import Plan

MANIFEST = "checkpoint.json"
CONFIG = "config.json"
"""What transformers needs to load the weights, where it knows the model."""
RNG = "rng"
"""The folder of every rank's generator."""
SHARED = (
    "lora",
    "hyper_parameters.stage",
    "hyper_parameters.seed",
    "hyper_parameters.sequence_length",
    "global_batch_size",
)
"""What is trained beside the model itself, or of it, and what decides which data comes in which step."""


def part_folder(folder: Path, part: Part) -> Path:
    """Where a part's safetensors lie; the weights lie at the top, where other tools look for them."""
    return folder if part == "weights" else folder / part


def partial_folder(folder: Path) -> Path:
    """What ``folder`` is called as long as it is being written."""
    return folder.with_name(f"{folder.name}.partial")


def exact_weights(folder: Path) -> Path:
    """The folder of the weights with the most digits: the main weights, where there are some."""
    main = part_folder(folder, "main_weights")
    return main if main.is_dir() else folder


def began_with(plan: Plan) -> Literal["random", "pretrained"]:
    """What training began with, which a run that goes on inherits."""
    if plan.checkpoint.load is not None:
        return read(Path(plan.checkpoint.load).expanduser()).weights
    return "random" if plan.weights is None else "pretrained"


def read(folder: Path) -> Checkpoint:
    """What the checkpoint in ``folder`` says about itself; UsageError where it is none, or not whole."""
    file = folder / MANIFEST
    try:
        return Checkpoint.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UsageError(explain(error, str(file)), f"give {MANIFEST} its text back") from error
    except OSError as error:
        raise UsageError(
            f"{folder} holds no whole checkpoint: {MANIFEST}: {error.strerror}",
            "name a folder that checkpoint.save was given; a folder of weights alone goes by --set weights=DIR",
        ) from error


def require_new(folder: Path) -> None:
    """UsageError unless a checkpoint can be written into ``folder``, said before the run and not after it."""
    for path in (folder, partial_folder(folder)):  # the latter was left half-written, or is being written
        if path.exists():
            raise UsageError(
                f"checkpoint.save: {path} is there already",
                "name another folder, or remove it; of several runs, choose one with --run",
            )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if not os.access(folder.parent, os.W_OK):
        raise cannot_write(folder, "permission denied")


def cannot_write(folder: Path, why: object) -> UsageError:
    """The error of a checkpoint that cannot be written."""
    return UsageError(
        f"the checkpoint {folder} cannot be written: {why}",
        "name a folder on a disk with room and write permission as checkpoint.save",
    )


def require_same(checkpoint: Checkpoint, folder: Path, plan: Plan, data_manifest_sha256: str) -> None:
    """UsageError, with what differs, unless ``checkpoint`` is of ``plan``'s model, data and order of data."""
    different = [f"{name} {own} instead of {other}" for name, own, other in _differences(checkpoint.plan, plan)]
    if data_manifest_sha256 != checkpoint.data_manifest_sha256:
        own, other = data_manifest_sha256[:12], checkpoint.data_manifest_sha256[:12]
        different.append(f"data with manifest {own} instead of {other}")
    if different:
        raise UsageError(
            f"the checkpoint {folder} (step {checkpoint.step}) is of another run: {', '.join(different)}",
            "set what differs as the checkpoint has it; to start anew from its weights alone: --set weights=DIR",
        )


def _differences(saved: Plan, plan: Plan) -> Iterator[tuple[str, object, object]]:
    for name, own in plan.model.model_dump().items():
        other = getattr(saved.model, name)
        if own != other:
            yield f"model.{name}", own, other
    for key in SHARED:
        section, _, name = key.rpartition(".")
        own, other = (getattr(getattr(p, section) if section else p, name) for p in (plan, saved))
        if own != other:
            yield name, own, other
