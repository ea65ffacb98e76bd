"""Settings by dotted key, in layers: the case's, the hardware config's, the run's, the command line's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from core.errors import UsageError
from schemas.base import Schema, problems
from schemas.case import Case, DataSpec, TokenizerSpec
from schemas.evaluation import EvaluationSpec
from schemas.hyperparameters import CheckpointFolders, HyperParameters, LoraSpec, Measure, OverrideValue
from schemas.model import DecoderSpec, VisionSpec
from schemas.units import Unit

SECTIONS: Mapping[str, type[Schema]] = {
    "measure": Measure,
    "model": DecoderSpec,
    "data": DataSpec,
    "tokenizer": TokenizerSpec,
}
"""Dotted settings; a bare key is a hyper-parameter, and ``weights`` stands alone."""
OPTIONAL_SECTIONS: Mapping[str, type[Schema]] = {
    "vision": VisionSpec,
    "lora": LoraSpec,
    "evaluation": EvaluationSpec,
}
"""Dotted settings that only some cases have."""
RUN_SECTIONS: Mapping[str, type[Schema]] = {"checkpoint": CheckpointFolders}
"""Dotted settings that no case has."""

S = TypeVar("S", bound=Schema)


@dataclass(frozen=True)
class Settings:
    """What all layers come to, each field as a plan has it."""

    hyper_parameters: HyperParameters
    measure: Measure
    model: DecoderSpec
    data: DataSpec
    tokenizer: TokenizerSpec
    vision: VisionSpec | None
    lora: LoraSpec | None
    evaluation: EvaluationSpec | None
    checkpoint: CheckpointFolders
    weights: str | None


class Layers:
    """Settings by dotted key, each with the layer that set it last."""

    def __init__(self, case: Case) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self._source = f"case {case.name}"
        self._start("", case.hyper_parameters)
        for name in (*SECTIONS, *OPTIONAL_SECTIONS):
            section = getattr(case, name)
            if section is not None:
                self._start(f"{name}.", section)
        for name, schema in RUN_SECTIONS.items():
            self._start(f"{name}.", schema())
        self.values["weights"] = case.weights
        self.origins["weights"] = self._source

    def _start(self, prefix: str, section: Schema) -> None:
        for name in type(section).model_fields:
            self.values[prefix + name] = getattr(section, name)
            self.origins[prefix + name] = self._source if name in section.model_fields_set else "default"

    def apply(self, overrides: Mapping[str, OverrideValue], origin: str) -> None:
        """Lay ``overrides`` on top; UsageError names an unknown key and the closest known one."""
        for key, value in overrides.items():
            if key not in self.values:
                close = difflib.get_close_matches(key, self.values, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(self.values))}"
                raise UsageError(f"{origin}: unknown setting {key!r} (value {value!r})", hint)
            self.values[key] = value
            self.origins[key] = origin

    def settings(self) -> Settings:
        """All sections, typed as ``section`` does it."""
        weights = self.values["weights"]
        return Settings(
            hyper_parameters=self.section("", HyperParameters),
            model=self.section("model.", DecoderSpec),
            measure=self.section("measure.", Measure),
            data=self.section("data.", DataSpec),
            tokenizer=self.section("tokenizer.", TokenizerSpec),
            vision=self._optional_section("vision", VisionSpec),
            lora=self._optional_section("lora", LoraSpec),
            evaluation=self._optional_section("evaluation", EvaluationSpec),
            checkpoint=self.section("checkpoint.", CheckpointFolders),
            weights=None if weights is None else str(weights),
        )

    def section(self, prefix: str, schema: type[S]) -> S:
        """The section, its values typed from here on; UsageError names layer, field and value of what is wrong."""
        data = {name: self.values[prefix + name] for name in schema.model_fields}
        try:
            section = schema.model_validate(data)
        except ValidationError as error:
            raise self._wrong(prefix, schema, problems(error)) from error
        self.values |= {prefix + name: getattr(section, name) for name in schema.model_fields}
        return section

    def _optional_section(self, name: str, schema: type[S]) -> S | None:
        """As ``section``; None where the case has no such section."""
        known = any(key.startswith(f"{name}.") for key in self.values)
        return self.section(f"{name}.", schema) if known else None

    def _wrong(self, prefix: str, schema: type[Schema], found: Iterable[tuple[str, str]]) -> UsageError:
        lines: list[str] = []
        culprits: list[str] = []
        for field_name, message in found:
            # Values that clash have no place of their own: every one that a layer over the case set is named.
            keys = [prefix + field_name.split(".")[0]] if field_name else self._changed(prefix, schema)
            origins = ", ".join(dict.fromkeys(self.origins[key] for key in keys))
            lines.append(f"{origins}: {(prefix + field_name).rstrip('.')}: {message}")
            culprits += [f"{key} in {self.origins[key]}" for key in keys]
        return UsageError("\n".join(lines), f"correct {', '.join(dict.fromkeys(culprits))}")

    def _changed(self, prefix: str, schema: type[Schema]) -> list[str]:
        keys = [prefix + name for name in schema.model_fields]
        return [key for key in keys if self.origins[key] not in (self._source, "default")]


def plain(value: Any) -> OverrideValue:
    """A setting's value as it is written in a layer."""
    written: OverrideValue = value.render() if isinstance(value, Unit) else value
    return written
