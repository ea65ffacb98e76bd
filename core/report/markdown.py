"""Markdown building blocks: tables padded for a fixed-width font, and escapes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def display_width(text: str) -> int:
    """Columns that ``text`` takes in a fixed-width font: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, one string a line, cells padded to equal width."""
    lines = [columns, *rows]
    widths = [max(3, *(display_width(line[i]) for line in lines)) for i in range(len(columns))]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    padded = ["| " + " | ".join(map(_pad, line, widths)) + " |" for line in lines]
    return [padded[0], rule, *padded[1:]]


def escape(text: str) -> str:
    """Foreign text (an error's message, a device's name) as one line of inline Markdown."""
    return re.sub(r"([\\`*<|])", r"\\\1", " ".join(text.split()))


def _pad(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))
