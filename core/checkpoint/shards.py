"""Writes tensors one after the other into safetensors files of bounded size, as released checkpoints are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from core.checkpoint.folder import cannot_write
from core.models.initialise import INDEX

SHARD_BYTES = 4 << 30
"""The largest file, and with one more tensor the most of a checkpoint that is in memory at once."""


class ShardWriter:
    """Fills ``folder``: ``add`` every tensor, then ``finish``. UsageError where it cannot be written."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._limit = folder, shard_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._shards: list[list[str]] = []
        self.bytes = 0
        self.dtype: torch.dtype | None = None
        """Of the tensors; None before the first."""
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy ``tensor`` to the host; what came before is written when both do not fit one file."""
        size = tensor.numel() * tensor.element_size()
        if self._held and self._held_bytes + size > self._limit:
            self._flush()
        # A copy of its own: views of one buffer are refused by safetensors.
        self._held[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self._held_bytes += size
        self.bytes += size
        self.dtype = tensor.dtype

    def finish(self) -> None:
        """Write what is left, give the files their names, and write the index if there are several."""
        self._flush()
        count = len(self._shards)
        names = ["model.safetensors"]
        if count > 1:
            names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        try:
            for number, name in enumerate(names):
                self._shard(number).rename(self._folder / name)
            if count > 1:
                files = {tensor: name for name, held in zip(names, self._shards, strict=True) for tensor in held}
                index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(files.items()))}
                write_text(self._folder / INDEX, json.dumps(index, indent=2) + "\n")
            sync(self._folder)
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def _flush(self) -> None:
        path = self._shard(len(self._shards))
        try:
            path.touch()
            mode = path.stat().st_mode  # save_file lets no one but the owner read
            save_file(self._held, path, metadata={"format": "pt"})  # the word that other tools look for
            path.chmod(mode)
            sync(path)
        except (OSError, SafetensorError) as error:
            raise cannot_write(path, error) from error
        self._shards.append(list(self._held))
        self._held, self._held_bytes = {}, 0

    def _shard(self, number: int) -> Path:
        """Its name as long as nobody knows how many there will be."""
        return self._folder / f"shard-{number:05d}.safetensors"


def write_text(path: Path, text: str) -> None:
    """Write a small file that is on the disk when this returns."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
