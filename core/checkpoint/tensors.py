"""Reads a checkpoint's tensors into an engine's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from core.checkpoint.folder import part_folder
from core.models.initialise import Place, Shapes, T, files_by_tensor, load_safetensors


def read_part(
    targets: Iterable[tuple[str, T]], folder: Path, place: Place[T], *, shapes: Shapes | None = None
) -> None:
    """As ``load_safetensors``, from files that may hold more: other ranks' tensors, or those of frozen weights."""
    own = dict(targets)
    load_safetensors(
        own.items(), folder, place, shapes=shapes, elsewhere=files_by_tensor(folder).keys() - own.keys()
    )


def read_weights(targets: Iterable[tuple[str, T]], folder: Path, place: Place[T], *, exact: bool) -> None:
    """The weights of the checkpoint in ``folder``; if ``exact``, of each the main weight where there is one."""
    own = dict(targets)
    main = part_folder(folder, "main_weights")
    mains = files_by_tensor(main).keys() & own.keys() if exact and main.is_dir() else set()
    read_part(((name, target) for name, target in own.items() if name not in mains), folder, place)
    if mains:
        read_part(((name, target) for name, target in own.items() if name in mains), main, place)
