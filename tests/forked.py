"""Ranks of small jobs as processes that have torch imported already: its import takes longer than most jobs."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PRELOADED = (
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "deepspeed",
    "megatron.core",
)
"""What the server that all ranks are forked from imports, where it is installed."""


@dataclass(frozen=True)
class Ended:
    """How a rank ended and what it wrote."""

    code: int | None
    """None where it was still running at the end of its time."""
    out: str
    errors: str


def run_ranks(
    target: str, argument: object, environments: Sequence[Mapping[str, str]], folder: Path, timeout_s: float = 180
) -> list[Ended]:
    """Call ``target`` (``module:function``) with ``argument`` in a process for each of ``environments``.

    Output goes through files in ``folder``. A rank that is still running after ``timeout_s`` is killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    stems = [folder / f"{len(list(folder.iterdir()))}-rank{rank}" for rank in range(len(environments))]
    ranks = [
        context.Process(target=_rank, args=(target, argument, dict(environment), str(stem)))
        for environment, stem in zip(environments, stems, strict=True)
    ]
    for process in ranks:
        process.start()
    end = time.monotonic() + timeout_s
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return [Ended(code, _text(stem, "out"), _text(stem, "err")) for code, stem in zip(codes, stems, strict=True)]


def _text(stem: Path, kind: str) -> str:
    file = stem.with_suffix(f".{kind}")
    return file.read_text(errors="replace") if file.exists() else ""


def _rank(target: str, argument: object, environment: Mapping[str, str], stem: str) -> None:
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{stem}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    module, _, function = target.partition(":")
    code = 0
    try:
        getattr(importlib.import_module(module), function)(argument)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of native libraries have been seen to abort an interpreter that shuts down
