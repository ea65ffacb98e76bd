"""What the sheets that are not yet data need of the schema: each of their quirks re-renders as published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.report import check, render_report
from schemas.record import Record
from schemas.report import Report, has_chinese

PUBLISHED = Path(__file__).parent / "published"
Elements = Callable[[str], list[tuple[Any, ...]]]


def record(name: str, **changes: Any) -> Record:
    values = {
        "id": name, "run": name, "status": "ok", "source": "published", "weights": "pretrained", "data": "d",
        "official": True, "scaled_down": False, "emulated": False,
        "case": "c", "vendor": "v", "chip": "X", "engine": "torch",
    }  # fmt: skip
    return Record(**(values | changes))


def text(zh: str, en: str) -> dict[str, str]:
    return {"zh": zh, "en": en}


def titled(shows: str, title: Any = None, **options: Any) -> dict[str, Any]:
    return {"shows": shows, "title": title or shows, **options}


CONFIG = text("配置", "Config")
TOKENS = titled("tokens_per_second_per_chip", "token/p/s")
MEM, MFU = titled("memory", "mem"), titled("mfu", "MFU")
SLASH: dict[str, Any] = {"missing": "slash"}


def cells(*literals: str | dict[str, Any]) -> list[dict[str, Any]]:
    return [{"literal": cell} if isinstance(cell, str) else cell for cell in literals]


A100_PRECISION = text("数据精度", "precision")
A100_BLOCKS = [
    {"kind": "list", "items": [
        {"kind": "text", "level": 5, "text": text("优化策略", "Optimisations"), "children": {"items": [
            {"kind": "entry", "key": text("优化方案", "Technique"), "value": "lora"},
            {"kind": "entry", "key": text("方案细节", "Details"), "value": (
                "LoraConfig(\nauto_mapping=None,\nbase_model_name_or_path=None,\n"
                "revision=None, task_type='CAUSAL_LM',\ninference_mode=False, r=8,\n"
                "target_modules=['q_proj', 'v_proj'],\nlora_alpha=32, lora_dropout=0.05,\n"
                "fan_in_fan_out=False, bias='none',\nmodules_to_save=None,\ninit_lora_weights=True,\n"
                "layers_to_transform=None,\nlayers_pattern=None)"
            )},
        ]}},
    ]},
    {"kind": "heading", "level": 3, "text": text("运行情况", "How it ran")},
    {"kind": "list", "marker": "*", "items": [
        {"kind": "text", "text": text("输入批尺寸", "Input batch size"), "children": {"marker": "1.", "items": [
            {"kind": "batch", "field": "local_batch_size", "name": "local_batchsize(batch_size_training)",
             "set_in": "config_A100x1x1.py", "default": 2},
        ]}},
    ]},
    {"kind": "performance", "columns": [
        titled("config", CONFIG, numerals="words"),
        titled("fix_hp", names={"precision": A100_PRECISION, "local_batch_size": "local_batchsize"}),
        TOKENS, titled("loss"), MEM, titled("accuracy", "acc(MMLU)", benchmark="MMLU"), MFU,
    ], "rows": [
        {"record": "a", "cells": cells("A100单机单卡（1x1）", "/", "2788", "1.64", "37.3/40", "0.38", SLASH)},
        {"record": "b", "cells": cells("A100单机单卡（1x1）", "数据精度=fp16, local_batchsize=4", "4017", "1.77",
                                       "32.0/40", "0.43", "36.1%")},
    ]},
    {"kind": "quote", "text": text(
        "注：\nfinetune训练数据集为samsum_dataset,MMLU数据集在这里只做配合lora-finetune后功能测试使用，"
        "MMLU评测结果无finetune结果指导意义，这里关注吞吐量即可。", "Note:\nonly the throughput matters here.")},
]  # fmt: skip
A100 = {"topology": "A100x1x1", "parallel": "TP1PP1DP1"}
A100_RECORDS = [
    record("a", **A100, precision="fp32", throughput={"tokens_per_second_per_chip": 2788}, loss={"last": 1.64},
           memory={"peak_device_gib": 37.3, "capacity_gib": 40}, accuracy={"MMLU": {"value": 0.38}}),
    record("b", **A100, precision="fp16", fix_hp={"precision": "fp16", "local_batch_size": 4},
           throughput={"tokens_per_second_per_chip": 4017}, loss={"last": 1.77},
           accuracy={"MMLU": {"value": 0.43}},
           memory={"peak_device_gib": 32.0, "capacity_gib": 40},
           mfu={"flagperf": 4017 * 2.8e10 / 312e12, "flops_per_token": {"flagperf": 2.8e10}, "peak_tflops": 312}),
]  # fmt: skip

C500_BLOCKS = [
    {"kind": "metrics", "rows": [
        {"name": text("数据精度", "Precision"),
         "value": text("precision,见“性能指标”", "precision, see Performance"),
         "note": text("可选fp32/amp/fp16/bf16", "fp32/amp/fp16/bf16")},
        {"name": text("超参修改", "Changes"), "value": text("parallel,见“性能指标”", "parallel, see Performance"),
         "note": text("格式为TPxPPyDPz，例如TP2PP1DP4", "written TPxPPyDPz")},
        {"name": text("超参修改", "Changes"), "value": text("fix_hp,见“性能指标”", "fix_hp, see Performance"),
         "note": text("跑满硬件设备评测吞吐量所需特殊超参", "what the throughput needs")},
    ]},
    {"kind": "list", "marker": "*", "items": [{"kind": "text", "text": text("性能指标", "Performance")}]},
    {"kind": "paragraph", "text": text(
        "值得注意的是，下列第4组实验的global_batchsize与llama2原始论文相同, 训练100 step，"
        "此项实验也将作为精度对齐所用实验。",
        "The fourth experiment has the global batch size of the llama2 paper.")},
    {"kind": "performance", "columns": [
        titled("config", CONFIG, numerals="words"), titled("precision"), titled("parallel"), titled("fix_hp"),
        TOKENS, titled("aligned", text("是否精度对齐", "Aligned")), MEM, MFU,
    ], "rows": [
        {"record": "c", "cells": cells("C500四机32卡（4x8）", "fp32", "TP8PP4DP1", "/", *[SLASH] * 4)},
        {"record": "d", "cells": cells("C500四机32卡（4x8）", "amp", "TP8PP4DP1", "/", *[SLASH] * 4)},
        {"record": "e", "cells": cells(
            "C500四机32卡（4x8）", "amp", "TP4PP8DP1", "/", SLASH, SLASH, "62/64", SLASH)},
        {"record": "f", "cells": cells(
            "C500四机32卡（4x8）", "amp", "TP4PP8DP1",
            {"literal": "GAS=1024(GBS=1024=4M tokens)", "remark": "GBS=1024=4M tokens"},
            SLASH, "True", "62/64", SLASH)},
    ]},
]  # fmt: skip
FULL = {"memory": {"peak_device_gib": 62, "capacity_gib": 64}}
C500_RECORDS = [
    record("c", topology="C500x4x8", parallel="TP8PP4DP1", precision="fp32"),
    record("d", topology="C500x4x8", parallel="TP8PP4DP1", precision="amp"),
    record("e", topology="C500x4x8", parallel="TP4PP8DP1", precision="amp", **FULL),
    record("f", topology="C500x4x8", parallel="TP4PP8DP1", precision="amp", aligned=True,
           fix_hp={"gradient_accumulation_steps": 1024}, **FULL),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sheet", "blocks", "records"),
    [
        ("A100_llama2_7b_finetune", A100_BLOCKS, A100_RECORDS),
        ("C500_llama2_70b", C500_BLOCKS, C500_RECORDS),
    ],
    ids=["A100", "C500"],
)
def test_the_quirks_re_render(sheet: str, blocks: Any, records: list[Record], elements: Elements) -> None:
    title = text("标题", "Title")
    report = Report(id="q", case="c", vendor="v", title=title, blocks=blocks)
    by_id = {record.id: record for record in records}
    assert check(report, by_id) == []
    published = elements((PUBLISHED / f"{sheet}.md").read_text(encoding="utf-8"))
    for element in elements(render_report(report, by_id, "zh"))[1:]:
        if element[0] == "table" and element not in published:
            whole = next(e for e in published if e[0] == "table" and e[1][0] == element[1][0])
            assert [row for row in element[1][1:] if row not in whole[1]] == []
        else:
            assert element in published
    assert not has_chinese(render_report(report, by_id, "en"))
    assert Report.model_validate_json(report.model_dump_json()) == report
