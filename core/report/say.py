"""Small helpers to say measured facts in both report languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from core.report.markdown import escape
from schemas.base import Text
from schemas.plan import Plan
from schemas.report import Item, ListBlock


def verbatim(text: str) -> Text:
    """A name or value from a record or plan: the same in both languages, safe as Markdown."""
    return Text(zh=escape(text), en=escape(text))


def listed(texts: Sequence[Text]) -> Text:
    """The distinct texts, in order of appearance."""
    distinct = list(dict.fromkeys((text.zh, text.en) for text in texts))
    return Text(zh="、".join(zh for zh, _ in distinct), en=", ".join(en for _, en in distinct))


def by_run(plans: Sequence[Plan], say: Callable[[Plan], Text]) -> Text:
    """What ``say`` gives, once where all runs agree, otherwise each value with the runs it holds for."""
    runs: dict[tuple[str, str], list[str]] = {}
    for plan in plans:
        text = say(plan)
        names = runs.setdefault((text.zh, text.en), [])
        if plan.run not in names:
            names.append(plan.run)
    if len(runs) == 1:
        zh, en = next(iter(runs))
        return Text(zh=zh, en=en)
    return Text(
        zh="；".join(f"{zh}（{'、'.join(names)}）" for (zh, _), names in runs.items()),
        en="; ".join(f"{en} ({', '.join(names)})" for (_, en), names in runs.items()),
    )


def significant(value: float, unit: str = "", digits: int = 4) -> str:
    """``value`` with ``digits`` significant digits, never in exponent notation above 1, and its unit."""
    number = f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
    return f"{number} {unit}".rstrip()


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 chip``, ``2 chips``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def share(value: float) -> str:
    """A relative error: in percent, or where that would be nearly nothing, as it is."""
    return f"{significant(100 * value, digits=3)}%" if value >= 1e-5 or value == 0 else f"{value:.1e}"


def item_list(marker: Literal["-", "*", "1."], items: Sequence[Item]) -> ListBlock:
    """A list block of ``items``."""
    return ListBlock(marker=marker, items=tuple(items))
