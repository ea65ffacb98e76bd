"""What weights a run starts from, as one hash: two runs can be compared only where it is the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from core.models.initialise import files_by_tensor, initialise_random
from schemas.model import DecoderSpec
from schemas.plan import Plan

PROBE_SIZE = 1 << 22
"""Values drawn. What a CUDA generator draws depends on the number of multiprocessors, but only beyond one round of
a full grid (``calc_execution_policy`` in ATen's DistributionTemplates.h): 1.1 million values on an H200."""
SAMPLES = 16
STEPS_PER_DEVIATION = 100
"""Samples are rounded to this share of the deviation: two CPUs may differ in a value's last bit."""
PREFIX_BYTES = 1024
"""Read of each tensor of a checkpoint: training changes nearly every value, and whole files would take minutes."""


def weights_sha256(plan: Plan, device: torch.device) -> str:
    """Hash of the initial weights that ``plan`` asks for on ``device``, whatever engine or layout places them.

    Of random weights, the recipe is carried out for one tensor on the device itself: another seed, initialiser,
    deviation or generator (each type of device has its own) gives another hash. Of pretrained ones, names, types,
    shapes and the first values of all tensors are hashed; how they are split into files does not matter.
    """
    if plan.checkpoint.load is not None:  # moments go with its weights, which other runs do not start with
        return _sha256(["checkpoint", _safetensors(Path(plan.checkpoint.load).expanduser())])
    if plan.weights is None:
        return _random(plan.model, plan.hyper_parameters.seed, device)
    return _safetensors(Path(plan.weights))


def _random(spec: DecoderSpec, seed: int, device: torch.device) -> str:
    drawn: list[Tensor] = []
    target = nn.Parameter(torch.empty(PROBE_SIZE, device="meta"))
    initialise_random(
        [("fingerprint.weight", target)], spec, seed, lambda _, full: drawn.append(full), device=device
    )
    samples = drawn[0][:: PROBE_SIZE // SAMPLES].double().cpu() / spec.initializer_range
    steps = (samples * STEPS_PER_DEVIATION).round().long().tolist()
    return _sha256(["random", spec.initializer_range, seed, steps])


def _safetensors(folder: Path) -> str:
    files = files_by_tensor(folder)
    tensors = {name: facts for file in sorted(set(files.values())) for name, facts in _tensors(file).items()}
    return _sha256(["safetensors", *([name, *tensors[name]] for name in sorted(files))])


def _tensors(file: Path) -> dict[str, list[object]]:
    """Type, shape and a hash of the first bytes of every tensor in ``file``.

    The format: 8 bytes of length, a JSON header of that length, and the values at the offsets that it tells.
    """
    found: dict[str, list[object]] = {}
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(length))
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            begin, end = facts["data_offsets"]
            content.seek(8 + length + begin)
            first = content.read(min(PREFIX_BYTES, end - begin))
            found[name] = [facts["dtype"], facts["shape"], hashlib.sha256(first).hexdigest()]
    return found


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
