from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.report.cells import cell_text, hyper_parameter, percent, used_memory_gib
from schemas.base import Text
from schemas.record import Loss, Memory, Record, Throughput
from schemas.report import AccuracyColumn, Cell, Column, ConfigColumn, FixHpColumn, Language, ValueColumn

MakeRecord = Callable[..., Record]


def show(shows: Any, record: Record, cell: Cell | None = None, language: Language = "zh") -> str:
    return cell_text(ValueColumn(shows=shows, title=shows), cell or Cell(), record, language)


def published(make_record: MakeRecord, **changes: Any) -> Record:
    return make_record(source="published", weights="pretrained", data="d", **changes)


@pytest.mark.parametrize(
    ("topology", "column", "zh", "en"),
    [
        ("H800x2x8", {}, "H800 2机16卡（2x8）", "H800, 2 nodes, 16 chips (2x8)"),
        ("A100x1x1", {"numerals": "words"}, "A100单机单卡（1x1）", "A100, 1 node, 1 chip (1x1)"),
        ("C500x4x8", {"numerals": "words"}, "C500四机32卡（4x8）", "C500, 4 nodes, 32 chips (4x8)"),
        ("X1x12x8", {"numerals": "words"}, "X1 12机96卡（12x8）", "X1, 12 nodes, 96 chips (12x8)"),
        (
            "MLUx1x8",
            {"numerals": "words", "chip": "/", "with_run": True},
            "/单机8卡（1x8）（base）",
            "/, 1 node, 8 chips (1x8) (base)",
        ),
    ],
)
def test_config_labels(make_record: MakeRecord, topology: str, column: dict[str, Any], zh: str, en: str) -> None:
    record = make_record(topology=topology)
    shown: Column = ConfigColumn(title="c", **column)
    assert cell_text(shown, Cell(), record, "zh") == zh
    assert cell_text(shown, Cell(), record, "en") == en


@pytest.mark.parametrize(
    ("shows", "literal"),
    [
        ("tokens_per_second_per_chip", "2068"),
        ("tokens_per_second_per_chip", "2068.4"),
        ("loss", "3.20"),
        ("loss", "3.2"),
        ("memory", "77/80"),
        ("memory", "77.0/80"),
        ("mfu", "16.3%"),
        ("mfu", "16.31%"),
        ("mfu_palm", "36.1%"),
        ("precision", "bf16"),
        ("parallel", "TP1PP1DP4"),
        ("aligned", "True"),
        ("run", "base"),
    ],
)
def test_the_literal_decides_the_decimals(make_record: MakeRecord, shows: str, literal: str) -> None:
    record = published(
        make_record,
        throughput=Throughput(tokens_per_second_per_chip=2068.4),
        loss=Loss(last=3.2),
        memory=Memory(peak_device_gib=77, capacity_gib=80),
        mfu={"flagperf": 0.163098, "palm": 0.3605},
        aligned=True,
    )
    assert show(shows, record, Cell(literal=literal)) == literal


def test_missing_and_kept_cells_print_what_was_published(make_record: MakeRecord) -> None:
    record = make_record()
    reason = Text(zh="换", en="swapped")
    assert show("loss", record, Cell(missing="empty")) == ""
    assert show("loss", record, Cell(missing="slash")) == "/"
    assert show("loss", record, Cell(literal="44.2/48.0", as_published=reason)) == "44.2/48.0"


def test_fix_hp_is_rendered_from_the_typed_changes(make_record: MakeRecord) -> None:
    changes = {"precision": "fp16", "local_batch_size": 4, "compile": True, "data.path": "/a (b)=c,d", "x": None}
    record = make_record(fix_hp=changes)
    names = {"precision": Text(zh="数据精度", en="precision")}
    column = FixHpColumn(title="fix_hp", names=names)
    rest = "LBS=4, compile=true, data.path=/a%20%28b%29%3Dc%2Cd, x=none(remark)"
    assert cell_text(column, Cell(remark="remark"), record, "zh") == f"数据精度=fp16, {rest}"
    assert cell_text(column, Cell(remark="remark"), record, "en") == f"precision=fp16, {rest}"
    assert cell_text(column, Cell(), make_record(), "zh") == "/"
    assert hyper_parameter("") == "''"


def test_how_long_was_measured_is_no_change_of_the_run(make_record: MakeRecord) -> None:
    record = make_record(fix_hp={"local_batch_size": 1, "measure.steps": 55})
    assert cell_text(FixHpColumn(title="fix_hp"), Cell(remark="r"), record, "zh") == "LBS=1(r)"


def test_measured_cells_without_a_literal(make_record: MakeRecord) -> None:
    record = make_record()
    shown = [
        show(s, record, None, "en") for s in ("tokens_per_second_per_chip", "loss", "memory", "mfu", "mfu_palm")
    ]
    assert shown == ["12432", "7.31 (random weights, generated data)", "68.2/79.7", "52.8%", "59.1%"]
    assert show("loss", record) == "7.31（随机权重，生成数据）"
    assert show("loss", make_record(weights="pretrained"), None, "en") == "7.31 (generated data)"
    assert show("loss", make_record(weights="pretrained", data="openwebtext"), None, "en") == "7.31"
    slow = make_record(throughput=Throughput(tokens_per_second_per_chip=12.34))
    assert show("tokens_per_second_per_chip", slow) == "12.3"
    assert show("aligned", record) == "/"


def test_accuracy_carries_the_stamp_of_measured_runs(make_record: MakeRecord) -> None:
    column = AccuracyColumn(title="acc(MMLU)", benchmark="MMLU")
    measured = make_record(accuracy={"MMLU": {"value": 0.384}}, weights="pretrained")
    assert cell_text(column, Cell(), measured, "en") == "0.38 (generated data)"
    sheet = published(make_record, accuracy={"MMLU": {"value": 0.384}})
    assert cell_text(column, Cell(literal="0.384"), sheet, "zh") == "0.384"
    embedded = make_record(accuracy={"MMLU": {"value": 0.25, "data": "embedded"}}, weights="pretrained")
    assert cell_text(column, Cell(), embedded, "en") == "0.25 (generated data, embedded questions)"
    assert cell_text(column, Cell(), make_record(), "zh") == "/"


def test_a_failed_run_shows_its_status_and_no_number(make_record: MakeRecord) -> None:
    record = make_record(status="oom", reason="rank 2 in step 3: out of memory")
    assert show("tokens_per_second_per_chip", record) == "oom"
    assert [show(s, record) for s in ("loss", "memory", "mfu", "mfu_palm", "aligned")] == ["/"] * 5
    assert show("status", record) == "oom"


def test_what_is_not_ranked_is_marked(make_record: MakeRecord) -> None:
    record = make_record(scaled_down=True, emulated=True, official=False)
    assert not record.rankable
    assert show("status", record) == "ok（缩小的模型，模拟设备，非正式，不参与排名）"
    assert show("status", make_record(emulated=True), None, "en") == "ok (emulated device, not ranked)"
    assert show("status", make_record()) == "ok"


def test_memory_falls_back_to_what_the_vendor_can_tell(make_record: MakeRecord) -> None:
    assert used_memory_gib(make_record()) == 68.21
    reserved = Memory(peak_allocated_gib=1.0, peak_reserved_gib=2.0, capacity_gib=8)
    assert used_memory_gib(make_record(memory=reserved)) == 2.0
    assert used_memory_gib(make_record(memory=Memory(peak_allocated_gib=1.0))) == 1.0
    assert show("memory", make_record(memory=Memory(peak_allocated_gib=1.0))) == "/"


def test_percent_rounds_half_up() -> None:
    assert percent(0.3605) == "36.1%"
    assert percent(0.3605, "36.05%") == "36.05%"
    assert percent(None) is None
