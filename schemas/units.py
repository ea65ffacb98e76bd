"""The notations of the published reports, each parsed and rendered losslessly.

``H800x2x8`` (topology), ``TP4PP8DP1`` (parallel layout), ``77/80`` (memory), ``GAS=64(globalbs=2M tokens)``
(hyper-parameter changes), ``16.3%``; and two of our own, ``19-20-21-20`` (layers of pipeline stages) and
``q_proj+v_proj`` (modules). For every unit ``parse(text).render() == text``, and back.
"""

from __future__ import annotations

import inspect
import re
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, PositiveInt, model_validator
from pydantic_core import CoreSchema, core_schema
from typing_extensions import Self, override

from schemas.base import Schema

GIB = 1024**3


class Unit(Schema):
    """A value with a text notation: accepted as text anywhere, written as text to JSON."""

    notation: ClassVar[str]
    """An example of the notation, shown in errors."""
    pattern: ClassVar[str]
    """What a text in the notation matches from end to end; part of the exported JSON Schema."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The value that ``text`` stands for; ValueError names the text and the expected notation."""
        return cls(**cls._fields(text))

    @classmethod
    def _fields(cls, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def render(self) -> str:
        """The notation of this value."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.render()

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return cls._fields(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_notation(self) -> Self:
        self._match(self.render())
        return self

    @classmethod
    def _match(cls, text: str) -> re.Match[str]:
        found = re.fullmatch(cls.pattern, text)
        if found is None:
            raise ValueError(f"{text!r} is not a {cls.__name__}; write it like {cls.notation!r}")
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return core_schema.no_info_after_validator_function(
            lambda value: value,
            schema,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.render(), return_schema=core_schema.str_schema()
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {
            "title": cls.__name__,
            "description": inspect.cleandoc(cls.__doc__ or ""),
            "type": "string",
            "pattern": f"^(?:{cls.pattern})$",
            "examples": [cls.notation],
        }


_COUNT = "[1-9][0-9]*"
_NUMBER = r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"


class Topology(Unit):
    """Chip type × nodes × chips per node."""

    notation: ClassVar[str] = "H800x2x8"
    pattern: ClassVar[str] = rf"([A-Za-z0-9][A-Za-z0-9._-]*?)x({_COUNT})x({_COUNT})"

    chip: str
    nodes: PositiveInt
    chips_per_node: PositiveInt

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        found = cls._match(text)
        return {"chip": found[1], "nodes": int(found[2]), "chips_per_node": int(found[3])}

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        if re.search(r"x[0-9]+(x[0-9]+)?$", self.chip):
            raise ValueError(f"chip name {self.chip!r} ends like a topology; rename the chip")
        return self

    @override
    def render(self) -> str:
        return f"{self.chip}x{self.nodes}x{self.chips_per_node}"

    @property
    def world_size(self) -> int:
        """Chips in all."""
        return self.nodes * self.chips_per_node


class Parallel(Unit):
    """Tensor, pipeline and data parallel sizes; their product is the world size."""

    notation: ClassVar[str] = "TP4PP8DP1"
    pattern: ClassVar[str] = f"TP({_COUNT})PP({_COUNT})DP({_COUNT})"

    tp: PositiveInt
    pp: PositiveInt
    dp: PositiveInt

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        found = cls._match(text)
        return {"tp": int(found[1]), "pp": int(found[2]), "dp": int(found[3])}

    @override
    def render(self) -> str:
        return f"TP{self.tp}PP{self.pp}DP{self.dp}"

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tp * self.pp * self.dp


class PipelineLayers(Unit):
    """Layers of each pipeline stage, from the first layer on; interleaved, rank r has stages r, r + PP, ..."""

    notation: ClassVar[str] = "19-20-21-20"
    pattern: ClassVar[str] = f"{_COUNT}(?:-{_COUNT})*"

    counts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        return {"counts": tuple(int(count) for count in cls._match(text)[0].split("-"))}

    @override
    def render(self) -> str:
        return "-".join(map(str, self.counts))


class ModuleNames(Unit):
    """Names of a model's modules."""

    notation: ClassVar[str] = "q_proj+v_proj"
    pattern: ClassVar[str] = r"[A-Za-z_]\w*(?:\+[A-Za-z_]\w*)*"

    names: Annotated[tuple[str, ...], Field(min_length=1)]

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        return {"names": tuple(cls._match(text)[0].split("+"))}

    @override
    def render(self) -> str:
        return "+".join(self.names)


NonNegativeDecimal = Annotated[Decimal, Field(ge=0), AfterValidator(Decimal.copy_abs)]
"""``-0`` counts as 0, so that a share that rounds to nothing does not print a sign."""


class MemoryUse(Unit):
    """Used and total device memory in GiB, with as many decimals as were written (``37.3/40``)."""

    notation: ClassVar[str] = "77/80"
    pattern: ClassVar[str] = f"({_NUMBER})/({_NUMBER})"

    used_gib: NonNegativeDecimal
    capacity_gib: Annotated[Decimal, Field(gt=0)]

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        found = cls._match(text)
        return {"used_gib": Decimal(found[1]), "capacity_gib": Decimal(found[2])}

    @override
    def render(self) -> str:
        return f"{self.used_gib:f}/{self.capacity_gib:f}"


class Percent(Unit):
    """A share as the reports print it, ``16.3%``; ``value`` is in percent, not a fraction."""

    notation: ClassVar[str] = "16.3%"
    pattern: ClassVar[str] = f"({_NUMBER})%"

    value: NonNegativeDecimal

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        return {"value": Decimal(cls._match(text)[1])}

    @classmethod
    def of_fraction(cls, fraction: float, decimals: int = 1) -> Self:
        """``fraction`` (0.3605 is 36.05%) rounded half up, as the reports round (36.05% prints 36.1%)."""
        return cls(value=round_half_up(Decimal(repr(fraction)) * 100, decimals))

    @override
    def render(self) -> str:
        return f"{self.value:f}%"


def round_half_up(value: Decimal | float, decimals: int) -> Decimal:
    """Round away from zero on a tie, keeping ``decimals`` digits (``Decimal('37.30')`` for 37.3, 2).

    A float counts as the decimal number that it prints as.
    """
    exact = value if isinstance(value, Decimal) else Decimal(repr(value))
    return exact.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP)


class Assignment(Unit):
    """One hyper-parameter change of a table row, with an optional remark behind it."""

    notation: ClassVar[str] = "GAS=64(globalbs=2M tokens)"
    pattern: ClassVar[str] = r"([^\s=,()/][^=,()]*)=([^\s=,()][^=,()]*)(?:\(([^()]+)\))?"

    key: str
    value: str
    remark: Annotated[str, Field(min_length=1)] | None = None

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        found = cls._match(text)
        return {"key": found[1], "value": found[2], "remark": found[3]}

    @override
    def render(self) -> str:
        return f"{self.key}={self.value}" + (f"({self.remark})" if self.remark else "")


class FixHp(Unit):
    """The ``fix_hp`` cell: assignments separated by ``", "``, or ``/`` where nothing was changed."""

    notation: ClassVar[str] = "数据精度=fp16, local_batchsize=4"
    pattern: ClassVar[str] = f"/|{Assignment.pattern}(?:, {Assignment.pattern})*"

    assignments: tuple[Assignment, ...] = ()

    @classmethod
    @override
    def _fields(cls, text: str) -> dict[str, Any]:
        if text == "/":
            return {"assignments": ()}
        parts = re.split(r", (?![^(]*\))", text)
        return {"assignments": tuple(Assignment.parse(part) for part in parts)}

    @override
    def render(self) -> str:
        return ", ".join(a.render() for a in self.assignments) or "/"
