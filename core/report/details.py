"""The block 测量细节 of a measured sheet: how one run was measured, and the numbers its table has no room for."""

from __future__ import annotations

from collections.abc import Mapping

from core.report.cells import percent
from core.report.markdown import escape
from core.report.say import item_list, share, significant, verbatim
from schemas.base import Text
from schemas.evaluation import Accuracy
from schemas.plan import Plan
from schemas.profile import Share
from schemas.record import Record, StartPhase
from schemas.report import EntryItem, Item, Language, TextItem


def run_details(record: Record, plan: Plan) -> TextItem:
    """One list item for the run, with an entry for everything the record knows of its measurement."""
    entries: list[Item] = [_entry("记录", "Record", verbatim(record.id))]
    if record.status != "ok":
        reason = "" if record.reason is None else f": {record.reason}"
        entries.append(_entry("失败", "Failed", verbatim(record.status + reason)))
    if record.unofficial_reason is not None:
        entries.append(_entry("非正式原因", "Unofficial because", verbatim(record.unofficial_reason)))
    if record.loss.first_step > 1:
        entries.append(_went_on(record.loss.first_step - 1))
    if record.status == "ok":
        entries += [
            *_start(record),
            *_timing(record, plan),
            *_utilisation(record),
            *_memory(record),
            *_energy(record),
        ]
        entries += [*_alignment(record), *_accuracy(record), *_profile(record)]
    entries += [_entry("警告", "Warning", verbatim(message)) for message in record.warnings]
    title = Text(zh=f"运行 {record.run}", en=f"Run {record.run}")
    return TextItem(text=title, children=item_list("-", entries))


def _went_on(step: int) -> Item:
    text = Text(zh=f"从第 {step} 步的检查点继续训练", en=f"goes on from a checkpoint of step {step}")
    return _entry("续训", "Continued", text)


def _alignment(record: Record) -> list[Item]:
    alignment = record.alignment
    if alignment is None:
        return []
    errors = ", ".join(f"{c.name} {share(c.error)} (≤ {share(c.tolerance)})" for c in alignment.conditions)
    name, steps = escape(alignment.reference), alignment.steps
    zh = f"与参考曲线 {name} {'' if alignment.aligned else '未'}对齐（{steps} 步）：{errors}"
    en = f"{'' if alignment.aligned else 'not '}aligned with reference curve {name} ({steps} steps): {errors}"
    return [_entry("精度对齐", "Alignment", Text(zh=zh, en=en))]


_SHARES: Mapping[Share, Text] = {
    "matrix_products": Text(zh="矩阵乘", en="matrix products"),
    "attention": Text(zh="注意力", en="attention"),
    "loss": Text(zh="输出层与损失", en="output head and loss"),
    "memory_bound": Text(zh="访存类算子", en="memory-bound"),
    "optimizer": Text(zh="优化器", en="optimizer"),
    "communication": Text(zh="未被掩盖的通信", en="exposed communication"),
    "host": Text(zh="等待主机", en="waiting for the host"),
}


def _profile(record: Record) -> list[Item]:
    profile = record.profile
    if profile is None:
        return []

    def shares(language: Language) -> str:
        told = [
            f"{_SHARES[kind].in_language(language)} {share(seconds / profile.step_time_s)}"
            for kind, seconds in profile.seconds.items()
        ]
        return f"{significant(profile.step_time_s, 's')}: " + ", ".join(told)

    return [_entry("单步耗时构成", "Where the time of a traced step goes", Text(zh=shares("zh"), en=shares("en")))]


_START: Mapping[StartPhase, Text] = {
    "launch": Text(zh="启动进程", en="launch"),
    "imports": Text(zh="导入", en="imports"),
    "device": Text(zh="设备与通信组", en="device and process group"),
    "data": Text(zh="数据", en="data"),
    "setup": Text(zh="模型与优化器", en="model and optimizer"),
    "first_step": Text(zh="首步（含编译）", en="first step, with compilation"),
    "warm_up": Text(zh="其余预热", en="other warm-up"),
}


def _start(record: Record) -> list[Item]:
    """From the command to the first window, as far as that is known."""
    parts = record.startup_seconds
    if not parts:
        return []

    def told(language: Language) -> str:
        each = [f"{_START[phase].in_language(language)} {seconds:.1f} s" for phase, seconds in parts.items()]
        return f"{sum(parts.values()):.1f} s: " + ", ".join(each)

    return [_entry("启动至测量窗口", "From the command to the window", Text(zh=told("zh"), en=told("en")))]


def _accuracy(record: Record) -> list[Item]:
    return [_entry(f"{name} 准确率", f"{name} accuracy", _asked(found)) for name, found in record.accuracy.items()]


def _asked(found: Accuracy) -> Text:
    """What was asked and how, which the table's number does not tell."""
    error = "" if found.standard_error is None else f" ± {share(found.standard_error)}"
    zh, en = [f"{share(found.value)}{error}"], [f"{share(found.value)}{error}"]
    if found.questions is not None:
        zh.append(f"{found.questions} 题（{escape(found.data or '/')}）")
        en.append(f"{found.questions} questions ({escape(found.data or '/')})")
    if found.mean_shots is not None:
        zh.append(f"平均 {found.mean_shots:.2f} 个示例，{found.cut_prompts} 个提示被截短")
        en.append(f"{found.mean_shots:.2f} examples on average, {found.cut_prompts} prompts cut")
    if found.unparsable is not None:
        zh.append(f"{share(found.unparsable)} 的回答无法解析")
        en.append(f"{share(found.unparsable)} of the answers could not be parsed")
    left_out = sum(found.skipped.values())
    if left_out:
        zh.append(f"{left_out} 题损坏而略去")
        en.append(f"{left_out} damaged questions left out")
    return Text(zh="，".join(zh), en=", ".join(en))


def _entry(zh: str, en: str, value: Text) -> EntryItem:
    return EntryItem(key=Text(zh=zh, en=en), value=value)


def _known(value: float | None, unit: str) -> str:
    return "/" if value is None else significant(value, unit)


def _timing(record: Record, plan: Plan) -> list[Item]:
    measured = record.throughput
    if measured is None:
        return []
    window, warmup = _known(measured.window_s, "s"), plan.measure.warmup_steps
    steps = "/" if measured.measured_steps is None else str(measured.measured_steps)
    p5, p95 = _known(measured.step_time_p5_s, "s"), _known(measured.step_time_p95_s, "s")
    median = _known(measured.step_time_median_s, "s")
    return [
        _entry(
            "测量窗口",
            "Measured window",
            Text(
                zh=f"{window}，{steps} 步，此前预热 {warmup} 步不计",
                en=f"{window}, {steps} steps, after {warmup} warm-up steps that do not count",
            ),
        ),
        _entry(
            "单步时间",
            "Step time",
            Text(
                zh=f"中位数 {median}，p5 {p5}，p95 {p95}",
                en=f"median {median}, p5 {p5}, p95 {p95}",
            ),
        ),
    ]


def _utilisation(record: Record) -> list[Item]:
    mfu = record.mfu
    hardware, causal = percent(mfu.hardware) or "/", percent(mfu.causal) or "/"
    entries: list[Item] = [
        _entry(
            "HFU，MFU(causal)", "HFU, MFU(causal)", Text(zh=f"{hardware}，{causal}", en=f"{hardware}, {causal}")
        )
    ]
    if mfu.peak_tflops is not None:
        peak = f"{significant(mfu.peak_tflops, 'TFLOP/s')} {mfu.peak_precision or ''}".rstrip()
        source = mfu.peak_source or "/"
        entries.append(_entry("峰值及来源", "Peak and source", verbatim(f"{peak}; {source}")))
    if mfu.missing is not None:
        entries.append(_entry("无MFU的原因", "Why there is no MFU", verbatim(mfu.missing)))
    return entries


def _memory(record: Record) -> list[Item]:
    memory = record.memory
    allocated, reserved, device = (
        _known(value, "GiB")
        for value in (memory.peak_allocated_gib, memory.peak_reserved_gib, memory.peak_device_gib)
    )
    return [
        _entry(
            "显存峰值",
            "Memory peaks",
            Text(
                zh=f"已分配 {allocated}，已保留 {reserved}，整卡 {device}",
                en=f"allocated {allocated}, reserved {reserved}, whole device {device}",
            ),
        )
    ]


def _energy(record: Record) -> list[Item]:
    read = record.telemetry
    mean, largest = _known(read.power_mean_w, "W"), _known(read.power_max_w, "W")
    energy = "/" if read.energy_per_token_j is None else significant(read.energy_per_token_j, "J/token")
    return [
        _entry(
            "单卡功率",
            "Power per chip",
            Text(zh=f"平均 {mean}，最大 {largest}", en=f"mean {mean}, largest {largest}"),
        ),
        _entry("单token能耗", "Energy per token", verbatim(energy)),
    ]
