"""The comparison that the golden tests share: a sheet as a sequence of elements."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pytest

Element = tuple[Any, ...]


@pytest.fixture(scope="session")
def elements() -> Callable[[str], list[Element]]:
    return _elements


def _elements(markdown: str) -> list[Element]:
    """Headings, paragraphs, quotes, list lines and tables of a sheet, in order, white space collapsed."""
    found: list[Element] = []
    for kind, group in groupby(_lines(markdown), key=lambda line: line[0]):
        lines = list(group)
        if kind == "row":
            found.append(("table", [cells for _, cells in lines]))
        elif kind == "text":
            found.append(("paragraph", " ".join(text for _, text in lines)))
        elif kind != "blank":
            found += lines
    return found


def _lines(markdown: str) -> Iterator[Element]:
    """Each line with what it is; list lines carry their depth, separator rows of tables are left out."""
    indents: list[int] = []
    for line in markdown.splitlines():
        text = re.sub(r"\s+", " ", line).strip()
        item = re.match(r"(\s*)([-*]|\d+\.)\s+(.*)", line)
        heading = re.match(r"(#+) (.*)", text)
        if item:
            while indents and indents[-1] >= len(item[1]):
                indents.pop()
            indents.append(len(item[1]))
            yield ("item", len(indents) - 1, item[2], re.sub(r"\s+", " ", item[3]).strip())
        elif not text:
            yield ("blank",)
        elif line[0] == " " and indents:
            yield ("continuation", text)
        else:
            indents = []
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", text)[1:-1]]
            if heading:
                yield ("heading", len(heading[1]), heading[2])
            elif text.startswith(">"):
                yield ("quote", text[1:].strip())
            elif not text.startswith("|"):
                yield ("text", text)
            elif not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                yield ("row", cells)
