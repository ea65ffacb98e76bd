"""A sheet in the published layout, generated from measured records of one case, vendor and topology."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import UsageError
from core.report.details import run_details
from core.report.say import by_run, item_list, listed, verbatim
from core.report.strategy import optimisation_entries, parallel_entries
from schemas.base import Text
from schemas.plan import Plan
from schemas.record import Record
from schemas.report import (
    AccuracyColumn,
    BatchField,
    BatchItem,
    Block,
    Cell,
    Column,
    ConfigColumn,
    EntryItem,
    FixHpColumn,
    Heading,
    Item,
    ListBlock,
    Metric,
    MetricTable,
    PerformanceTable,
    Report,
    Row,
    TextItem,
    ValueColumn,
)

PERFORMANCE = Text(zh="性能指标", en="Performance")

_HARDWARE = {
    "machine": Text(zh="机器型号", en="Machine"),
    "device": Text(zh="加速卡型号", en="Accelerator"),
    "cpu": Text(zh="CPU型号", en="CPU"),
    "cpu_cores": Text(zh="CPU核数", en="CPU cores"),
    "memory_gib": Text(zh="主机内存（GiB）", en="Host memory (GiB)"),
}
_SOFTWARE = {
    "os": Text(zh="OS版本", en="OS"),
    "kernel": Text(zh="OS kernel版本", en="OS kernel"),
    "driver": Text(zh="加速卡驱动版本", en="Accelerator driver"),
    "python": Text(zh="Python 版本", en="Python"),
}
"""Names for well-known keys of ``record.environment``; every other key is software and shown as it is."""

_COLUMNS: tuple[Column, ...] = (
    ConfigColumn(title=Text(zh="配置", en="Config")),
    ValueColumn(shows="run", title="run"),
    ValueColumn(shows="precision", title="precision"),
    ValueColumn(shows="parallel", title="parallel"),
    FixHpColumn(title="fix_hp"),
    ValueColumn(shows="tokens_per_second_per_chip", title="token/p/s"),
    ValueColumn(shows="loss", title="loss"),
    ValueColumn(shows="memory", title="mem"),
    ValueColumn(shows="mfu", title="MFU"),
    ValueColumn(shows="mfu_palm", title="MFU(PaLM)"),
    ValueColumn(shows="status", title=Text(zh="状态", en="Status")),
)
_ALIGNED = ValueColumn(shows="aligned", title=Text(zh="是否精度对齐", en="Aligned"))
"""After the loss, as in the published sheets; shown where a record was compared with a reference curve."""


def _accuracy(benchmark: str) -> AccuracyColumn:
    """After the memory, as in the published sheets; shown where the trained model was asked."""
    return AccuracyColumn(title=f"acc({benchmark})", benchmark=benchmark)


def _shown(name: Text, column: str, note: Text) -> Metric:
    return Metric(name=name, value=Text(zh=f"{column}，见“性能指标”", en=f"{column}, see Performance"), note=note)


_CHANGES = Text(zh="超参修改", en="Hyper-parameter changes")
_UTILISATION = Text(zh="计算使用率", en="Compute utilisation")
_COLUMN_METRICS = (
    _shown(
        Text(zh="数据精度", en="Precision"),
        "precision",
        Text(zh="可选fp32/tf32/amp/fp16/bf16/fp8", en="fp32/tf32/amp/fp16/bf16/fp8"),
    ),
    _shown(_CHANGES, "parallel", Text(zh="格式为TPxPPyDPz", en="written TPxPPyDPz")),
    _shown(_CHANGES, "fix_hp", Text(zh="相对配置文件的差异", en="the difference from the config")),
    _shown(
        Text(zh="硬件存储使用", en="Device memory used"),
        "mem",
        Text(zh="已用/容量，单位为GiB", en="used/capacity in GiB"),
    ),
    _shown(_UTILISATION, "MFU", Text(zh="6·N_nominal·token/p/s / 峰值", en="6·N_nominal·token/p/s / peak")),
    _shown(_UTILISATION, "MFU(PaLM)", Text(zh="参见PaLM论文定义", en="as defined in the PaLM paper")),
    _shown(
        Text(zh="**吞吐量**", en="**Throughput**"),
        "token/p/s",
        Text(zh="平均单卡每秒处理的token数", en="mean tokens per second and chip"),
    ),
)


def measured_report(records: Sequence[Record], task: Text | None = None) -> Report:
    """The sheet of ``records``, one row each, in their order; ``task`` is the case's.

    UsageError when there are none, when they differ in case, vendor or topology, or when one has no plan.
    """
    first = _require_one_sheet(records)
    plans = [_require_plan(record) for record in records]
    columns = _columns(records)
    environment = [
        _section(Text(zh="硬件环境", en="Hardware"), _hardware(records)),
        _section(Text(zh="软件环境", en="Software"), _software(records)),
        _section(Text(zh="并行策略", en="Parallel strategy"), parallel_entries(plans)),
        _section(Text(zh="优化策略", en="Optimisations"), optimisation_entries(plans)),
    ]
    blocks: tuple[Block, ...] = (
        Heading(level=4, text=Text(zh="环境配置", en="Environment")),
        ListBlock(items=tuple(environment)),
        Heading(level=3, text=Text(zh="运行情况", en="How it ran")),
        _batch_list(plans),
        item_list("*", [TextItem(text=Text(zh="通用指标", en="Common metrics"))]),
        MetricTable(rows=_metrics(records, task)),
        item_list("*", [TextItem(text=PERFORMANCE)]),
        PerformanceTable(
            columns=columns, rows=tuple(_row(columns, *pair) for pair in zip(records, plans, strict=True))
        ),
        item_list("*", [_details(records, plans)]),
    )
    return Report(
        id=f"measured_{first.vendor}_{first.topology}",
        case=first.case,
        vendor=first.vendor,
        title=Text(
            zh=f"{first.vendor} {first.topology} 配置与运行信息参考",
            en=f"{first.vendor} {first.topology}: configuration and run reference",
        ),
        blocks=blocks,
    )


def _require_one_sheet(records: Sequence[Record]) -> Record:
    if not records:
        raise UsageError("a measured sheet was asked for without a record", "give at least one record")
    for field in ("case", "vendor", "topology"):
        found = sorted({str(getattr(record, field)) for record in records})
        if len(found) > 1:
            raise UsageError(
                f"records of one sheet differ in {field}: {', '.join(found)}", f"write one sheet per {field}"
            )
    return records[0]


def _require_plan(record: Record) -> Plan:
    if record.plan is None:
        raise UsageError(
            f"record {record.id!r} ({record.source}) has no plan, so no sheet can be generated from it",
            "use measured records only; published ones are shown by their report",
        )
    return record.plan


def _section(title: Text, entries: Sequence[Item]) -> TextItem:
    return TextItem(text=title, level=5, children=item_list("-", entries))


def _merged_environment(records: Sequence[Record]) -> dict[str, str]:
    """Every key any record has; values that differ between records are listed."""
    values: dict[str, list[str]] = {}
    for record in records:
        for key, value in record.environment.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: ", ".join(several) for key, several in values.items()}


def _hardware(records: Sequence[Record]) -> list[Item]:
    first, found = records[0], _merged_environment(records)
    entries: list[Item] = [
        EntryItem(key=Text(zh="芯片与拓扑", en="Chip and topology"), value=verbatim(first.topology.render()))
    ]
    if "device" not in found:
        entries.append(EntryItem(key=_HARDWARE["device"], value=verbatim(first.chip)))
    return entries + [
        EntryItem(key=label, value=verbatim(found[key])) for key, label in _HARDWARE.items() if key in found
    ]


def _software(records: Sequence[Record]) -> list[Item]:
    found = _merged_environment(records)
    known = [key for key in _SOFTWARE if key in found]
    others = sorted(key for key in found if key not in _SOFTWARE and key not in _HARDWARE)
    entries: list[Item] = [
        EntryItem(key=_SOFTWARE.get(key, verbatim(key)), value=verbatim(found[key])) for key in known + others
    ]
    modes = sorted({f"{key}={value}" for record in records for key, value in record.math_mode.items()})
    if modes:
        key = Text(zh="矩阵乘精度开关", en="Switches of the matrix products' precision")
        entries.append(EntryItem(key=key, value=verbatim(", ".join(modes))))
    return entries or [TextItem(text=Text(zh="无记录", en="not recorded"))]


def _batch_list(plans: Sequence[Plan]) -> ListBlock:
    fields: tuple[BatchField, ...] = ("local_batch_size", "sequence_length", "gradient_accumulation_steps")
    items: list[Item] = [_batch_item(field, plans) for field in fields]
    sizes = by_run(plans, lambda plan: verbatim(str(plan.global_batch_size)))
    rule = r"local_batch_size\*gradient_accumulation_steps\*data_parallel_size"
    items.append(
        TextItem(
            text=Text(
                zh=f"global_batch_size恒等于{rule}，简写为GBS，为{sizes.zh}",
                en=f"global_batch_size, GBS for short, always equals {rule}: {sizes.en}",
            )
        )
    )
    title = Text(zh="输入批尺寸", en="Input batch size")
    return item_list("*", [TextItem(text=title, children=item_list("1.", items))])


def _batch_item(field: BatchField, plans: Sequence[Plan]) -> BatchItem:
    """The value runs start from: that of a run which does not change it, if there is one."""
    plan = next((plan for plan in plans if field not in plan.fix_hp), plans[0])
    origin = plan.origins.get(field, "default")
    set_in = Text(zh="AccelMark默认值", en="AccelMark's defaults") if origin == "default" else verbatim(origin)
    value: int = getattr(plan.hyper_parameters, field)
    return BatchItem(field=field, name=field, set_in=set_in, default=value)


def _metrics(records: Sequence[Record], task: Text | None) -> tuple[Metric, ...]:
    """What the sheet is about, and what each column of its performance table means."""
    first = records[0]
    facts = [] if task is None else [(Text(zh="任务类别", en="Task"), task)]
    facts += [
        (Text(zh="模型", en="Model"), verbatim(first.case)),
        (Text(zh="数据集", en="Data set"), listed([_data(record) for record in records])),
        (Text(zh="权重", en="Weights"), listed([_weights(record) for record in records])),
        (Text(zh="硬件设备简称", en="Device, short name"), verbatim(f"{first.vendor} {first.chip}")),
    ]
    return (*(Metric(name=name, value=value) for name, value in facts), *_COLUMN_METRICS)


def _data(record: Record) -> Text:
    return Text(zh="生成数据", en="generated") if record.data == "generated" else verbatim(record.data)


def _weights(record: Record) -> Text:
    pretrained = record.weights == "pretrained"
    return Text(zh="预训练", en="pretrained") if pretrained else Text(zh="随机初始化", en="random initialisation")


def _columns(records: Sequence[Record]) -> tuple[Column, ...]:
    columns: list[Column] = list(_COLUMNS)
    for benchmark in sorted({benchmark for record in records for benchmark in record.accuracy}):
        columns.insert(_behind(columns, "memory"), _accuracy(benchmark))
    if any(record.aligned is not None for record in records):
        columns.insert(_behind(columns, "loss"), _ALIGNED)
    return tuple(columns)


def _behind(columns: Sequence[Column], shows: str) -> int:
    return next(place for place, column in enumerate(columns, start=1) if column.shows == shows)


def _row(columns: Sequence[Column], record: Record, plan: Plan) -> Row:
    if plan.remark is None or not record.fix_hp or not record.official:
        return Row(record=record.id)
    remark = plan.remark.replace("(", "[").replace(")", "]")
    cells = [Cell(remark=remark) if column.shows == "fix_hp" else Cell() for column in columns]
    return Row(record=record.id, cells=tuple(cells))


def _details(records: Sequence[Record], plans: Sequence[Plan]) -> TextItem:
    runs = [run_details(record, plan) for record, plan in zip(records, plans, strict=True)]
    return TextItem(text=Text(zh="测量细节", en="How it was measured"), children=item_list("-", runs))
