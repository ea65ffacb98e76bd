"""Finding the input files of ``prepare`` and streaming the documents out of them."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from core.data.manifest import Source, file_sha256
from core.errors import UsageError


class Input(NamedTuple):
    """A file to read, and what the manifest says about it."""

    path: Path
    source: Source


def find_inputs(inputs: Sequence[Path]) -> list[Input]:
    """The files named, and those of known kinds in the folders named (at any depth), hashed.

    The order depends on relative names and contents only, not on where the files lie or how they were named. A
    file that is reached twice counts once; files of other kinds in a folder are left out. Raises ``UsageError``
    for a path that does not exist, a named file of unknown kind, and when nothing is found.
    """
    found: list[tuple[Path, str]] = []
    for given in inputs:
        if given.is_dir():
            files = [path for path in given.rglob("*") if path.is_file() and _reader(path.name)]
            found += [(path.resolve(), path.relative_to(given).as_posix()) for path in files]
        elif not given.is_file():
            raise UsageError(f"input {given} does not exist", "give a file or a folder of files")
        elif _reader(given.name) is None:
            raise UsageError(f"input {given} is of unknown kind", f"give one of {', '.join(_READERS)}")
        else:
            found.append((given.resolve(), given.name))
    if not found:
        names = ", ".join(str(given) for given in inputs) or "(none given)"
        raise UsageError(f"no input files found in {names}", f"give files, or a folder, of {', '.join(_READERS)}")
    hashed = [
        Input(path, Source(file=name, size_bytes=path.stat().st_size, sha256=file_sha256(path)))
        for path, name in dict(sorted(found)).items()
    ]
    return sorted(hashed, key=lambda one: (one.source.file, one.source.sha256))


def read_documents(path: Path, raw: IO[bytes]) -> Iterator[str]:
    """The documents of one file, opened as ``raw``, in its order; empty ones are dropped.

    Raises ``UsageError`` with file and line (or archive member) for what cannot be read.
    """
    reader = _reader(path.name)
    assert reader is not None, path
    try:
        yield from (text for text in reader(raw, str(path)) if text.strip())
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}", "fetch the file again; an .xz must hold a tar of .txt"
        ) from None


def _json_lines(raw: Iterable[bytes], where: str) -> Iterator[str]:
    for number, line in enumerate(raw, 1):
        if line.strip():
            yield _json_text(line, f"{where}:{number}")


def _json_text(line: bytes, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not valid JSON: {error}", "correct or remove this line") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UsageError(f'{where}: no field "text" that holds a string', "correct or remove this line")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: the text holds half a surrogate pair", "correct or remove this line") from None
    return text


def _gzip_json_lines(raw: IO[bytes], where: str) -> Iterator[str]:
    with gzip.open(raw) as lines:
        yield from _json_lines(lines, where)


def _text(raw: IO[bytes], where: str) -> Iterator[str]:
    try:
        yield raw.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8: {error}", "convert or remove this file") from None


def _tar(raw: IO[bytes], where: str) -> Iterator[str]:
    with tarfile.open(fileobj=raw, mode="r|") as archive:
        while member := archive.next():
            # Else the headers of millions of texts stay in memory.
            archive.members = []  # type: ignore[attr-defined]
            # openwebtext.tar.xz holds the `urlsf_subset*_data.xz`, which hold the texts.
            reader = {".txt": _text, ".xz": _xz_tar}.get(Path(member.name).suffix)
            content = archive.extractfile(member) if reader and member.isfile() else None
            if reader and content:
                yield from reader(content, f"{where}:{member.name}")


def _xz_tar(raw: IO[bytes], where: str) -> Iterator[str]:
    # Not tarfile's own "r|xz": it takes a cut off file for a complete one. So would we, with a tail unread.
    with lzma.open(raw) as content:
        yield from _tar(content, where)
        while content.read(1 << 20):
            pass


def _plain_tar(raw: IO[bytes], where: str) -> Iterator[str]:
    yield from _tar(raw, where)
    raw.seek(-tarfile.BLOCKSIZE, io.SEEK_END)
    if raw.read().strip(b"\0"):
        raise EOFError("the end of the archive is missing")


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[str]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _gzip_json_lines,
    ".txt": _text,
    ".tar": _plain_tar,
    ".xz": _xz_tar,
}


def _reader(name: str) -> Callable[[IO[bytes], str], Iterator[str]] | None:
    return next((reader for suffix, reader in _READERS.items() if name.endswith(suffix)), None)
