"""What a cell of the performance table reads: a value of the record, written as the published sheets write it."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from core.report.say import counted
from schemas.evaluation import EMBEDDED, Accuracy
from schemas.hyperparameters import OverrideValue
from schemas.record import Record
from schemas.report import AccuracyColumn, Cell, Column, ConfigColumn, FixHpColumn, Language, Phrase, in_language
from schemas.units import Assignment, FixHp, MemoryUse, Percent, round_half_up

SHORT_NAMES = {
    "gradient_accumulation_steps": "GAS",
    "local_batch_size": "LBS",
    "sequence_length": "MPE",
}
"""The reports' names of the batch fields."""

NUMBER = re.compile(r"\d+(\.\d+)?")
_NODE_WORDS = {1: "单", 2: "双", 3: "三", 4: "四", 5: "五", 6: "六", 7: "七", 8: "八"}


def cell_text(column: Column, cell: Cell, record: Record, language: Language) -> str:
    """What the sheet prints: the missing mark, the literal kept ``as_published``, or the rendered value.

    ``/`` where the record holds no value, and in every value cell of a run that failed.
    """
    if cell.published is not None and (cell.missing is not None or cell.as_published is not None):
        return cell.published
    text = render_value(column, cell, record, language)
    return "/" if text is None else text


def render_value(column: Column, cell: Cell, record: Record, language: Language) -> str | None:
    """The record's value in the notation of the sheets, None where the record holds none.

    The literal beside it decides how many decimals are shown; without one, the column's usual number.
    """
    if isinstance(column, ConfigColumn):
        return _config(column, record, language)
    if isinstance(column, FixHpColumn):
        return _fix_hp(column, cell, record, language)
    if isinstance(column, AccuracyColumn):
        found = record.accuracy.get(column.benchmark)
        return None if found is None else _number(found.value, cell, 2) + _accuracy_stamp(found, record, language)
    if column.shows in _MEASURED and record.status != "ok":
        return record.status if column.shows == "tokens_per_second_per_chip" else None
    return _VALUES[column.shows](cell, record, language)


def used_memory_gib(record: Record) -> float | None:
    """Peak memory of the ``mem`` column, GiB: the device's, or else the allocator's reserved or allocated."""
    memory = record.memory
    for value in (memory.peak_device_gib, memory.peak_reserved_gib, memory.peak_allocated_gib):
        if value is not None:
            return value
    return None


def hyper_parameter(value: OverrideValue) -> str:
    """A changed value in the ``fix_hp`` notation; what would break the notation is percent-encoded."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return re.sub(r"[=,()\s]", lambda found: f"%{ord(found[0]):02X}", str(value)) or "''"


def _config(column: ConfigColumn, record: Record, language: Language) -> str:
    topology = record.topology
    chip = topology.chip if column.chip is None else column.chip
    size = f"{topology.nodes}x{topology.chips_per_node}"
    if language == "en":
        label = f"{chip}, {counted(topology.nodes, 'node')}, {counted(topology.world_size, 'chip')} ({size})"
        return f"{label} ({record.run})" if column.with_run else label
    words = column.numerals == "words"
    nodes = _NODE_WORDS.get(topology.nodes, str(topology.nodes)) if words else str(topology.nodes)
    chips = "单" if words and topology.world_size == 1 else str(topology.world_size)
    space = " " if nodes.isdecimal() else ""
    label = f"{chip}{space}{nodes}机{chips}卡（{size}）"
    return f"{label}（{record.run}）" if column.with_run else label


def _fix_hp(column: FixHpColumn, cell: Cell, record: Record, language: Language) -> str:
    # How long was measured changes nothing about the run, and is told below the table.
    shown = {field: value for field, value in record.fix_hp.items() if not field.startswith("measure.")}
    last = len(shown) - 1
    changes = []
    for position, (field, value) in enumerate(shown.items()):
        name: Phrase = column.names.get(field, SHORT_NAMES.get(field, field))
        remark = cell.remark if position == last else None
        changes.append(Assignment(key=in_language(name, language), value=hyper_parameter(value), remark=remark))
    return FixHp(assignments=tuple(changes)).render()


def _decimals(literal: str) -> int:
    exponent = Decimal(literal).as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def _number(value: float, cell: Cell, usual: int) -> str:
    decimals = _decimals(cell.literal) if cell.literal and NUMBER.fullmatch(cell.literal) else usual
    return f"{round_half_up(value, decimals):f}"


def _tokens(cell: Cell, record: Record, language: Language) -> str | None:
    if record.throughput is None:
        return None
    value = record.throughput.tokens_per_second_per_chip
    return _number(value, cell, 0 if value >= 100 else 1 if value >= 10 else 2)


def _loss(cell: Cell, record: Record, language: Language) -> str | None:
    value = record.loss.last
    if value is None:
        return None
    return _number(value, cell, 2) + _stamp(record, language)


def _memory(cell: Cell, record: Record, language: Language) -> str | None:
    used, capacity = used_memory_gib(record), record.memory.capacity_gib
    if used is None or capacity is None:
        return None
    decimals = (1, 1)
    if cell.literal and re.fullmatch(rf"{NUMBER.pattern}/{NUMBER.pattern}", cell.literal):
        left, right = cell.literal.split("/")
        decimals = (_decimals(left), _decimals(right))
    use = MemoryUse(used_gib=round_half_up(used, decimals[0]), capacity_gib=round_half_up(capacity, decimals[1]))
    return use.render()


def percent(fraction: float | None, literal: str | None = None) -> str | None:
    """A fraction as ``16.3%``, with as many decimals as ``literal`` has (otherwise one)."""
    if fraction is None:
        return None
    number = literal.removesuffix("%") if literal else ""
    return Percent.of_fraction(fraction, _decimals(number) if NUMBER.fullmatch(number) else 1).render()


def _stamp(record: Record, language: Language) -> str:
    """What a measured loss or accuracy really is: `` (random weights, generated data)``."""
    what = _invented(record, language)
    return _in_brackets(what, language, leading=" ") if what else ""


def _accuracy_stamp(accuracy: Accuracy, record: Record, language: Language) -> str:
    """As ``_stamp``, and whether the questions are only the embedded ones."""
    what = _invented(record, language)
    if accuracy.data == EMBEDDED:
        what.append({"zh": "内置题目", "en": "embedded questions"}[language])
    return _in_brackets(what, language, leading=" ") if what else ""


def _invented(record: Record, language: Language) -> list[str]:
    what: list[str] = []
    if record.source == "measured" and record.weights == "random":
        what.append({"zh": "随机权重", "en": "random weights"}[language])
    if record.source == "measured" and record.data == "generated":
        what.append({"zh": "生成数据", "en": "generated data"}[language])
    return what


def _in_brackets(parts: list[str], language: Language, leading: str) -> str:
    return f"（{'，'.join(parts)}）" if language == "zh" else f"{leading}({', '.join(parts)})"


_MARKS: tuple[tuple[Callable[[Record], bool], dict[Language, str]], ...] = (
    (lambda record: record.scaled_down, {"zh": "缩小的模型", "en": "scaled-down model"}),
    (lambda record: record.emulated, {"zh": "模拟设备", "en": "emulated device"}),
    (lambda record: not record.official, {"zh": "非正式", "en": "unofficial"}),
)


def _status(cell: Cell, record: Record, language: Language) -> str:
    if record.status != "ok":  # the reason is told below the table
        return record.status
    marks = [words[language] for applies, words in _MARKS if applies(record)]
    if record.rankable:
        return "ok"
    return "ok" + _in_brackets([*marks, {"zh": "不参与排名", "en": "not ranked"}[language]], language, " ")


_VALUES: dict[str, Callable[[Cell, Record, Language], str | None]] = {
    "run": lambda cell, record, language: record.run,
    "precision": lambda cell, record, language: record.precision,
    "parallel": lambda cell, record, language: record.parallel.render(),
    "tokens_per_second_per_chip": _tokens,
    "loss": _loss,
    "memory": _memory,
    "aligned": lambda cell, record, language: None if record.aligned is None else str(record.aligned),
    "mfu": lambda cell, record, language: percent(record.mfu.flagperf, cell.literal),
    "mfu_palm": lambda cell, record, language: percent(record.mfu.palm, cell.literal),
    "status": _status,
}
_MEASURED = {"tokens_per_second_per_chip", "loss", "memory", "aligned", "mfu", "mfu_palm"}
