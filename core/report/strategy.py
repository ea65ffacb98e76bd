"""The sections 并行策略 and 优化策略 of a measured sheet, said from the typed fields of the plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from core.report.say import by_run, verbatim
from schemas.base import Text
from schemas.plan import Plan
from schemas.report import EntryItem, Item

_ATTENTION = {
    "eager": Text(zh="eager（完整的注意力矩阵）", en="eager (the full attention matrix)"),
    "sdpa": Text(zh="scaled dot product attention", en="scaled dot product attention"),
    "flex": Text(zh="FlexAttention", en="FlexAttention"),
    "vendor": Text(zh="厂商自有的融合注意力", en="fused attention of the vendor's own"),
}
_CHECKPOINTING = {
    "none": Text(zh="无", en="none"),
    "selective": Text(zh="选择性", en="selective"),
    "full": Text(zh="全部", en="full"),
}
_LOSS = {
    "full": Text(zh="一次计算全部logits", en="over all logits at once"),
    "chunked": Text(zh="分块计算", en="in chunks"),
}
_PADDING = {
    "longest": Text(zh="补齐至批内最长序列", en="to the longest sequence of a batch"),
    "dropped": Text(zh="仅在注意力内部", en="within attention only"),
}
_STATE = {
    "fp32": Text(zh="fp32", en="fp32"),
    "bf16_stochastic": Text(zh="bf16，随机舍入", en="bf16 with stochastic rounding"),
    "8bit": Text(zh="8 bit", en="8 bit"),
}


def parallel_entries(plans: Sequence[Plan]) -> list[Item]:
    """Technique, engine, and sizes with the ZeRO stage."""
    return [
        _entry("并行技术", "Technique", plans, _technique),
        _entry("实施者", "Implemented by", plans, lambda plan: verbatim(plan.engine)),
        _entry("实施细节", "Details", plans, _details),
    ]


def optimisation_entries(plans: Sequence[Plan]) -> list[Item]:
    """Every typed optimisation of the plans, switched on or not."""
    return [
        _entry("注意力", "Attention", plans, lambda plan: _ATTENTION[plan.hyper_parameters.attention]),
        _entry(
            "激活重计算",
            "Activation checkpointing",
            plans,
            lambda plan: _CHECKPOINTING[plan.hyper_parameters.activation_checkpointing],
        ),
        _entry("torch.compile", "torch.compile", plans, lambda plan: _switch(plan.hyper_parameters.compile)),
        _entry("交叉熵", "Cross-entropy", plans, lambda plan: _LOSS[plan.hyper_parameters.loss]),
        *_padding_entries(plans),
        _entry("优化器状态", "Optimizer state", plans, _optimizer_state),
        _entry("精度", "Precision", plans, _precision),
        *([_entry("LoRA", "LoRA", plans, _lora)] if any(plan.lora is not None for plan in plans) else []),
        *([_entry("打包", "Packing", plans, _packing)] if any(_packs(plan) for plan in plans) else []),
    ]


def _padding_entries(plans: Sequence[Plan]) -> list[Item]:
    if all(plan.vision is None for plan in plans):
        return []
    return [_entry("填充", "Padding", plans, lambda plan: _PADDING[plan.hyper_parameters.padding])]


def _entry(zh: str, en: str, plans: Sequence[Plan], say: Callable[[Plan], Text]) -> EntryItem:
    return EntryItem(key=Text(zh=zh, en=en), value=by_run(plans, say))


def _lora(plan: Plan) -> Text:
    if plan.lora is None:
        return Text(zh="无", en="none")
    one = plan.lora
    targets = ", ".join(one.target_modules.names)
    return verbatim(f"r={one.r}, alpha={one.alpha}, dropout={one.dropout:g}, target_modules={targets}")


def _packs(plan: Plan) -> bool:
    return plan.data.format == "dialogues"


def _packing(plan: Plan) -> Text:
    if plan.hyper_parameters.packing == "concat":
        return Text(zh="首尾相接", en="documents follow one another, and see each other")
    return Text(zh="首尾相接，文档间注意力屏蔽", en="documents follow one another, and do not see each other")


def _technique(plan: Plan) -> Text:
    layout, parts = plan.parallel, []
    if layout.tp > 1:
        parts.append(("张量", "tensor"))
    if layout.pp > 1:
        parts.append(("流水", "pipeline"))
    if layout.dp > 1:
        sharded = plan.hyper_parameters.zero_stage > 0
        parts.append(("分片数据", "sharded data") if sharded else ("数据", "data"))
    if not parts:
        return Text(zh="无", en="none")
    mixed = "混合" if len(parts) > 1 else ""
    return Text(
        zh="、".join(zh for zh, _ in parts) + f"{mixed}并行",
        en=", ".join(en for _, en in parts[:-1]) + (" and " if mixed else "") + parts[-1][1] + " parallel",
    )


def _details(plan: Plan) -> Text:
    layout = plan.parallel
    hp = plan.hyper_parameters
    sizes = [f"TP_SIZE={layout.tp}"] * (layout.tp > 1) + ["sequence parallel"] * hp.sequence_parallel
    sizes += [f"PP_SIZE={layout.pp}"] * (layout.pp > 1)
    sizes += [f"VPP_SIZE={hp.virtual_pipeline_stages}"] * (hp.virtual_pipeline_stages > 1)
    sizes += [] if hp.pipeline_layers is None else [f"layers {hp.pipeline_layers}"]
    return verbatim(", ".join([f"ZeRO stage {hp.zero_stage}", *sizes, f"DP_SIZE={layout.dp}"]))


def _switch(on: bool) -> Text:
    return Text(zh="开启", en="on") if on else Text(zh="关闭", en="off")


def _optimizer_state(plan: Plan) -> Text:
    state = _STATE[plan.hyper_parameters.optimizer_state]
    if plan.hyper_parameters.offload == "none":
        return state
    return Text(zh=f"{state.zh}，存于主机内存", en=f"{state.en}, kept in host memory")


def _precision(plan: Plan) -> Text:
    precision = plan.hyper_parameters.precision
    if precision == "amp":
        kind = plan.hyper_parameters.autocast_dtype
        return Text(zh=f"amp（autocast至{kind}）", en=f"amp (autocast to {kind})")
    if precision == "fp8":
        return Text(zh="fp8（各层的线性层；其余为bf16）", en="fp8 (products of the layers; all else bf16)")
    return verbatim(precision)
