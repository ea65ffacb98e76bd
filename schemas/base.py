"""The base class of every schema, and how a validation error is told to a person."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION: Final = 1

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
"""An identifier that is safe as a file name and on a command line."""

RecordId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=255)]
"""A record's: the name of its run's folder, which is made of several names."""


class Schema(BaseModel):
    """A frozen value that refuses unknown keys and keeps finite numbers only."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Text(Schema):
    """A piece of prose in both report languages."""

    zh: str
    en: str

    def in_language(self, language: str) -> str:
        """The text in ``zh`` or ``en``."""
        return self.zh if language == "zh" else self.en


def explain(error: ValidationError, source: str) -> str:
    """One line a problem: file, field, what is wrong and the value that was given.

    ``source`` is the file (or option) the data came from.
    """
    return "\n".join(f"{source}: {field or '(whole value)'}: {message}" for field, message in problems(error))


def problems(error: ValidationError) -> list[tuple[str, str]]:
    """Each problem's dotted field (empty where values clash with each other), and what is wrong with its value."""
    return [
        (".".join(str(part) for part in item["loc"]), _message(item)) for item in error.errors(include_url=False)
    ]


def _message(item: Any) -> str:
    if item["type"] == "missing":
        return "this field is missing"
    if item["type"] == "extra_forbidden":
        return f"unknown field (value {_short(item['input'])}); remove it or correct its spelling"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error" and isinstance(item["input"], (dict, BaseModel)):
        return message  # a whole object would be cut short; the message names the values that clash
    return f"{message} (got {_short(item['input'])})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
