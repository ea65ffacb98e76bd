"""Weights: drawn at random or read from safetensors, one parameter at a time, sharded or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from core.errors import UsageError
from core.models.naming import PLAIN, Naming
from schemas.model import DecoderSpec


class Target(Protocol):
    """Where a tensor of the released checkpoint goes: a parameter, or what knows its part in some parameters."""

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102


T = TypeVar("T", bound=Target)
Place = Callable[[T, Tensor], None]
"""Copies a full tensor into a target, or this rank's part of it: ``place(target, full)``."""
Shapes = Mapping[str, torch.Size]
"""Full shapes by name, for parameters that do not show theirs (ZeRO stage 3); take them on meta."""

INDEX = "model.safetensors.index.json"
_BUFFER = "rotary_emb.inv_freq"
_FLOATING = ("F64", "F32", "F16", "BF16")


class ParameterCount(NamedTuple):
    """Numbers of parameters; ``embedding`` is the input embedding and the output head together.

    ``forward_only`` are frozen ones that no gradient crosses: they come before all that is trained.
    """

    total: int
    trainable: int
    embedding: int
    forward_only: int = 0


def count_parameters(model: nn.Module) -> ParameterCount:
    """Counts by full shapes (also of DTensors and on meta); under ZeRO stage 3 count before it shards."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return ParameterCount(
        total=sum(sizes.values()),
        trainable=sum(sizes[name] for name, parameter in model.named_parameters() if parameter.requires_grad),
        embedding=sum(
            size for name, size in sizes.items() if name.endswith(("embed_tokens.weight", "lm_head.weight"))
        ),
        forward_only=sum(size for name, size in sizes.items() if name.startswith("vision_tower.")),
    )


def place_plain(parameter: Tensor, full: Tensor) -> None:
    """Copies ``full`` into a parameter that is not sharded."""
    with torch.no_grad():
        parameter.copy_(full)


def place_dtensor(parameter: Tensor, full: Tensor) -> None:
    """Copies this rank's part of ``full`` into a DTensor, without communication: every rank has ``full``."""
    target = parameter.data
    assert isinstance(target, DTensor)
    part = distribute_tensor(full, target.device_mesh, target.placements, src_data_rank=None)
    target.to_local().copy_(part.to_local())


def initialise_random(  # noqa: PLR0913
    named_parameters: Iterable[tuple[str, T]],
    spec: DecoderSpec,
    seed: int,
    place: Place[T],
    *,
    shapes: Shapes | None = None,
    device: torch.device | None = None,
) -> None:
    """Norm weights 1, biases 0, all others normal with mean 0 and deviation ``spec.initializer_range``.

    Each parameter has its own generator, seeded by ``seed`` and its name, and is drawn whole and in fp32: the
    values depend on neither order, rank, sharding nor the parameter's type. They are drawn on ``device`` (None:
    where the parameter lies); another type of device draws other values.
    """
    for name, parameter in named_parameters:
        shape = parameter.shape if shapes is None else shapes[name]
        where = parameter.device if device is None else device
        full = torch.empty(shape, device=where, dtype=torch.float32)
        *_, module, kind = name.split(".")
        if kind == "bias":
            full.zero_()
        elif "norm" in module:
            full.fill_(1.0)
        else:
            generator = torch.Generator(device=where).manual_seed(parameter_seed(seed, name))
            full.normal_(0.0, spec.initializer_range, generator=generator)
        place(parameter, full)


def parameter_seed(seed: int, name: str) -> int:
    """The seed of one parameter's generator, the same in every process (unlike ``hash``)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def load_safetensors(  # noqa: PLR0913
    named_parameters: Iterable[tuple[str, T]],
    folder: Path,
    place: Place[T],
    *,
    shapes: Shapes | None = None,
    elsewhere: Collection[str] = (),
    naming: Naming = PLAIN,
) -> None:
    """Reads every parameter from ``folder``'s safetensors (a single file, or several with an index).

    ``naming`` tells what the files call them; ``elsewhere`` names tensors that must be there, too, but that other
    ranks read. Names, shapes and types are checked before the first parameter is written; ``rotary_emb.inv_freq``,
    which some checkpoints carry, is passed over. Raises UsageError that names the file and the tensor.
    """
    from safetensors import SafetensorError, safe_open

    parameters = dict(named_parameters)
    expected = {name: shapes[name] if shapes else parameter.shape for name, parameter in parameters.items()}
    files = files_by_tensor(folder)
    stored = naming.sources(files)
    _check_names(folder, {*expected, *elsewhere}, set(stored))
    with ExitStack() as stack:
        readers: dict[Path, Any] = {}
        for path in sorted({files[name] for name in stored.values()}):
            try:
                readers[path] = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise UsageError(f"{path} cannot be read as safetensors: {error}", _FETCH_AGAIN) from error
        for name, shape in expected.items():
            path = files[stored[name]]
            _check_tensor(path, readers[path], stored[name], shape, longer=name in naming.longer)
        for name, parameter in parameters.items():
            slices = readers[files[stored[name]]].get_slice(stored[name])
            place(parameter, slices[: expected[name][0]])


_FETCH_AGAIN = "check the folder that 'weights' names, or fetch its files again"


def files_by_tensor(folder: Path) -> dict[str, Path]:
    """Tensor name to file, from the index or else from the only file; UsageError where ``folder`` has neither."""
    index = folder / INDEX
    if index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): folder / Path(file).name for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{index} is no safetensors index: {error!r}", _FETCH_AGAIN) from error
    else:
        single = sorted(folder.glob("*.safetensors"))
        if len(single) != 1:
            raise UsageError(
                f"{folder} holds {len(single)} *.safetensors files and no {INDEX}",
                "name a folder with one safetensors file, or with several and their index",
            )
        files = dict.fromkeys(_tensor_names(single[0]), single[0])
    return {name: path for name, path in files.items() if not name.endswith(_BUFFER)}


def _tensor_names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as reader:
            return list(reader.keys())
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read as safetensors: {error}", _FETCH_AGAIN) from error


def _check_names(folder: Path, expected: set[str], found: set[str]) -> None:
    for what, names in (("lacks", expected - found), ("holds an unexpected", found - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UsageError(
                f"{folder} {what} tensor {min(names)}{more}",
                "use weights of the case's own model, with the names of its released checkpoint",
            )


def _check_tensor(path: Path, reader: Any, name: str, shape: torch.Size, *, longer: bool) -> None:
    """The index can be wrong too: its file may lack the tensor."""
    if name not in reader.keys():  # noqa: SIM118 (a reader is no mapping)
        raise UsageError(f"{path} lacks tensor {name}, which the index says it holds", _FETCH_AGAIN)
    found = reader.get_slice(name)
    rows, *rest = found.get_shape()
    fits = rows >= shape[0] if longer else rows == shape[0]
    if rest != list(shape[1:]) or not fits:
        raise UsageError(
            f"{path}: tensor {name} has shape {[rows, *rest]}, the model needs {list(shape)}",
            "use weights of the case's own model, or correct the model's sizes",
        )
    if found.get_dtype() not in _FLOATING:
        raise UsageError(
            f"{path}: tensor {name} is of type {found.get_dtype()}, not floating point",
            f"use weights that are not quantised ({', '.join(_FLOATING)})",
        )
