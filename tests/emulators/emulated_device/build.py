"""The C++ part, compiled when it is first needed and kept for the next process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAME = "emulated_device"
SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++20", "-O0", "-fPIC", "-w", f"-DTORCH_EXTENSION_NAME={NAME}")


def library() -> Path:
    """The compiled library for this torch and this Python, in $ACCELMARK_CACHE (else ~/.cache/accelmark)."""
    cache = Path(os.environ.get("ACCELMARK_CACHE") or "~/.cache/accelmark").expanduser()
    folder = cache / "emulators" / _key()
    built = folder / f"{NAME}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not built.exists():  # another rank may have been quicker
                _build(folder, built)
    return built


def _key() -> str:
    """Changes with whatever the library depends on."""
    import torch

    text = [torch.__version__, sys.version, *FLAGS]
    text += [file.read_text(encoding="utf-8") for file in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]


def _build(folder: Path, built: Path) -> None:
    import torch

    root = Path(torch.__file__).parent
    includes = [root / "include", root / "include/torch/csrc/api/include", Path(sysconfig.get_path("include"))]
    options = [*FLAGS, *(f"-I{path}" for path in includes)]
    objects = {folder / f"{source.stem}.o": source for source in sorted(SOURCES.glob("*.cpp"))}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: _compiler(pair[0], *options, "-c", pair[1]), objects.items()))
    libraries = [f"-l{name}" for name in ("torch", "torch_cpu", "torch_python", "c10")]
    _compiler(built, "-shared", *objects, f"-L{root / 'lib'}", *libraries)
    for file in objects:
        file.unlink()


def _compiler(output: Path, *arguments: str | Path) -> None:
    """Make ``output``, unless an earlier process that was interrupted has made it."""
    if output.exists():
        return
    part = output.with_suffix(".part" + output.suffix)
    command = [os.environ.get("CXX", "g++"), *map(str, arguments), "-o", str(part)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ImportError(f"the emulated device does not compile: {' '.join(command)}\n{done.stderr[-4000:]}")
    part.rename(output)
