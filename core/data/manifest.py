"""The manifest of a prepared data set: what the token file holds, made from what, and its hashes."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError
from typing_extensions import Self

from core.errors import UsageError
from schemas.base import SCHEMA_VERSION, Name, Schema, explain

MANIFEST_FILE = "manifest.json"
TOKEN_FILE = "tokens.bin"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_ITEM_BYTES = {"uint16": 2, "uint32": 4}


class Source(Schema):
    """One input file."""

    file: str
    """Relative to the folder that was given, so that no path of a machine gets in."""
    size_bytes: NonNegativeInt
    sha256: Sha256


class Manifest(Schema):
    """What ``prepare`` wrote: a file of little-endian token ids, document after document."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name
    generated: bool
    """True for the corpus that AccelMark generates itself."""
    tokens: PositiveInt
    documents: PositiveInt
    dtype: Literal["uint16", "uint32"]
    token_file: Name = TOKEN_FILE
    token_sha256: Sha256
    vocab_size: PositiveInt
    bos_id: NonNegativeInt | None
    """The id that every document starts with; None where none was added."""
    eos_id: NonNegativeInt | None
    """The id that every document ends with; None where none was added."""
    tokenizer_sha256: Sha256
    sources: tuple[Source, ...] = Field(min_length=1)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in ``folder``; a ``UsageError`` names the file and each field that is wrong."""
        path = folder / MANIFEST_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UsageError(
                f"{folder} holds no prepared data set: {MANIFEST_FILE} is missing",
                "make one with `accelmark prepare`, or name the folder that it wrote",
            ) from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", "name a folder you may read") from None
        except ValidationError as error:
            raise UsageError(
                explain(error, str(path)), "do not edit a manifest; remove the folder and prepare again"
            ) from None

    def write(self, folder: Path) -> None:
        """Write the manifest into ``folder``; done last, its presence says that the data set is complete."""
        with replacing(folder / MANIFEST_FILE) as file:
            file.write(self.model_dump_json(indent=1).encode() + b"\n")

    def sha256(self) -> str:
        """Hash of the canonical JSON (sorted keys, no spaces); identifies the data set in records."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def verify_size(self, folder: Path) -> None:
        """Check that the token file is there and as long as it must be (cheap; no rank skips it)."""
        path = folder / self.token_file
        expected = self.tokens * _ITEM_BYTES[self.dtype]
        if not path.is_file():
            raise UsageError(f"{path} is missing", self._again(folder))
        if path.stat().st_size != expected:
            raise UsageError(
                f"{path} has {path.stat().st_size} bytes, its manifest says {expected}", self._again(folder)
            )

    def verify(self, folder: Path) -> None:
        """Check size and hash of the token file (about a second per GB); ``UsageError`` on a mismatch."""
        self.verify_size(folder)
        path = folder / self.token_file
        found = file_sha256(path)
        if found != self.token_sha256:
            raise UsageError(
                f"{path} is corrupt: its sha256 is {found[:16]}..., its manifest says {self.token_sha256[:16]}...",
                self._again(folder),
            )

    def _again(self, folder: Path) -> str:
        again = "the next run generates it again" if self.generated else "prepare it again"
        return f"remove {folder}; {again}"


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes ``path``'s place when the block ends well, and leaves no trace when it does not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
