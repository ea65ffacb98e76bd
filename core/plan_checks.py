"""Plans that cannot be: each check gives the reason and the smallest change that removes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.proposal import Check, Proposal, Refusal
from core.split_checks import SPLIT_CHECKS
from schemas.hyperparameters import OverrideValue
from schemas.units import PipelineLayers


def refusals(proposal: Proposal) -> list[Refusal]:
    """Everything that is wrong with ``proposal``; empty when it can run."""
    return [refusal for check in CHECKS if (refusal := check(proposal))]


def nearest(proposal: Proposal) -> dict[str, OverrideValue | PipelineLayers]:
    """The changes that make ``proposal`` pass every check, found by applying each refusal's own."""
    changes: dict[str, OverrideValue | PipelineLayers] = {}
    for _ in range(3 * len(CHECKS)):
        found = refusals(proposal)
        if not found:
            return changes
        changes |= found[0].change
        proposal = _with(proposal, found[0].change)
    raise AssertionError(f"the checks contradict each other: {changes}")


def _with(proposal: Proposal, change: dict[str, OverrideValue | PipelineLayers]) -> Proposal:
    sequences = change.get("data.generated_sequences", proposal.generated_sequences)
    assert sequences is None or isinstance(sequences, int)
    hp = {key: value for key, value in change.items() if "." not in key}
    return replace(proposal, hp=proposal.hp.model_copy(update=hp), generated_sequences=sequences)


def _precision(p: Proposal) -> Refusal | None:
    known = p.spec.precisions
    if p.hp.precision in known:
        return None
    return Refusal(
        f"engine {p.engine} does not run precision {p.hp.precision} (only {', '.join(known)})",
        {"precision": "bf16"},
    )


def _autocast_dtype(p: Proposal) -> Refusal | None:
    known = p.spec.autocast_dtypes
    if p.hp.precision != "amp" or p.hp.autocast_dtype in known:
        return None
    return Refusal(
        f"engine {p.engine} runs amp with no {p.hp.autocast_dtype} (only {', '.join(known)})",
        {"autocast_dtype": "bf16"},
    )


def _zero_stage(p: Proposal) -> Refusal | None:
    known = p.spec.zero_stages
    if p.hp.zero_stage in known:
        return None
    return Refusal(
        f"engine {p.engine} has no ZeRO stage {p.hp.zero_stage} (only {', '.join(map(str, known))})",
        {"zero_stage": min(known, key=lambda stage: (abs(stage - p.hp.zero_stage), -stage))},
    )


def _optimizer_state(p: Proposal) -> Refusal | None:
    state, known = p.hp.optimizer_state, p.spec.optimizer_states
    if state not in known:
        return Refusal(
            f"engine {p.engine} keeps no {state} optimizer state (only {', '.join(known)})",
            {"optimizer_state": "fp32"},
        )
    if state == "bf16_stochastic" and p.hp.precision not in ("bf16", "fp8"):
        return Refusal(
            f"optimizer_state bf16_stochastic goes with precision bf16 or fp8, not {p.hp.precision}",
            {"optimizer_state": "fp32"},
        )
    return None


def _adapters(p: Proposal) -> Refusal | None:
    if not p.adapters or p.hp.optimizer_state == "fp32":
        return None
    return Refusal(
        f"adapters are few: they keep an fp32 optimizer state, not {p.hp.optimizer_state}",
        {"optimizer_state": "fp32"},
    )


def _fp8(p: Proposal) -> Refusal | None:
    """Every dimension of a product in 8 bits is a multiple of 16; tokens are one of a weight's gradient."""
    if p.hp.precision != "fp8":
        return None
    if p.adapters or p.data_format == "conversations":
        what = "adapters" if p.adapters else f"data of format {p.data_format}"
        return Refusal(f"precision fp8 is not there for {what}", {"precision": "bf16"})
    sizes = {
        "tokens of a micro-batch": p.hp.local_batch_size * p.hp.sequence_length,
        "hidden_size": p.model.hidden_size,
        "intermediate_size": p.model.intermediate_size,
        "channels of all keys": p.model.num_kv_heads * p.model.head_size,
    }
    odd = [f"{name} {size}" for name, size in sizes.items() if size % 16]
    if odd:
        return Refusal(f"precision fp8 takes multiples of 16, not {', '.join(odd)}", {"precision": "bf16"})
    return None


def _packing(p: Proposal) -> Refusal | None:
    if p.hp.packing == "concat" or (p.data_format == "dialogues" and p.spec.document_masks):
        return None
    where = f"engine {p.engine}" if p.data_format == "dialogues" else f"data of format {p.data_format}"
    return Refusal(f"{where} does not keep documents apart (packing {p.hp.packing})", {"packing": "concat"})


def _padding(p: Proposal) -> Refusal | None:
    if p.hp.padding == "longest" or p.data_format == "conversations":
        return None
    return Refusal(
        f"data of format {p.data_format} has no padding to drop (padding {p.hp.padding})", {"padding": "longest"}
    )


def _main_weights_at_stage_0(p: Proposal) -> Refusal | None:
    if not (p.engine == "deepspeed" and p.hp.precision == "bf16" and p.hp.zero_stage == 0):
        return None
    return Refusal("DeepSpeed keeps no fp32 main weights for bf16 at ZeRO stage 0", {"zero_stage": 1})


def _offload(p: Proposal) -> Refusal | None:
    if p.hp.offload not in p.spec.offloads:
        return Refusal(f"engine {p.engine} does not offload the {p.hp.offload} state", {"offload": "none"})
    if p.hp.offload != "none" and p.hp.zero_stage == 0:
        return Refusal("offload needs a sharded optimizer (ZeRO stage 1 to 3)", {"zero_stage": 1})
    return None


def _gathered_layers(p: Proposal) -> Refusal | None:
    kept, layers = p.hp.gathered_layers, p.model.num_layers
    if kept == 0:
        return None
    if p.engine != "torch" or p.hp.zero_stage != 3:
        what = f"engine {p.engine} at ZeRO stage {p.hp.zero_stage}"
        return Refusal(
            f"{what} has no layers that could stay gathered (gathered_layers {kept})", {"gathered_layers": 0}
        )
    if kept > layers:
        return Refusal(f"gathered_layers {kept} of {layers} layers", {"gathered_layers": layers})
    return None


def _collectives(p: Proposal) -> Refusal | None:
    """Copies move the shards of FSDP2, between devices that share a node."""
    if p.hp.collectives == "library":
        return None
    if p.engine != "torch" or p.hp.zero_stage == 0 or p.data_parallel == 1:
        what = f"engine {p.engine} at ZeRO stage {p.hp.zero_stage} on {p.data_parallel} ranks"
        return Refusal(f"{what} has no shards of FSDP2 for peer copies to move", {"collectives": "library"})
    if p.topology.nodes > 1:
        return Refusal(f"peer copies do not leave a node, {p.topology} has more", {"collectives": "library"})
    return None


def _sequence_length(p: Proposal) -> Refusal | None:
    if p.hp.sequence_length <= p.model.max_positions:
        return None
    return Refusal(
        f"sequence_length {p.hp.sequence_length} is beyond the model's {p.model.max_positions} positions",
        {"sequence_length": p.model.max_positions},
    )


def _flex_needs_accelerator(p: Proposal) -> Refusal | None:
    if p.hp.attention != "flex" or not p.chip.reference:
        return None
    return Refusal("FlexAttention has no backward pass on the CPU", {"attention": "sdpa"})


def _vendor_attention(p: Proposal) -> Refusal | None:
    """A vendor's kernel takes whole sequences and all heads."""
    if p.hp.attention != "vendor":
        return None
    nearest: dict[str, OverrideValue | PipelineLayers] = {"attention": "sdpa" if p.chip.reference else "flex"}
    if not p.spec.vendor_attention:
        return Refusal(f"engine {p.engine} has no place for attention of the vendor's own", nearest)
    if p.hp.packing == "document_mask":
        return Refusal("attention of the vendor's own does not keep documents apart", nearest)
    return None


def _compile_under_zero3(p: Proposal) -> Refusal | None:
    if not (p.engine == "deepspeed" and p.hp.zero_stage == 3 and p.hp.compile):
        return None
    return Refusal(
        "ZeRO stage 3 gathers parameters in module hooks, which torch.compile cannot trace", {"compile": False}
    )


def _loss(p: Proposal) -> Refusal | None:
    if p.hp.loss in p.spec.losses:
        return None
    return Refusal(
        f"engine {p.engine} computes no {p.hp.loss} loss (only {', '.join(p.spec.losses)})", {"loss": "full"}
    )


def _z_loss(p: Proposal) -> Refusal | None:
    if p.spec.z_loss or p.hp.z_loss == 0:
        return None
    return Refusal(f"engine {p.engine} has no z-loss (z_loss is {p.hp.z_loss:g})", {"z_loss": 0.0})


def _schedule(p: Proposal) -> Refusal | None:
    hp = p.hp
    if hp.schedule in ("linear", "cosine") and hp.schedule_steps is None:
        return Refusal(f"schedule {hp.schedule} does not say how many steps it takes", {"schedule_steps": 1000})
    if hp.schedule_steps is not None and hp.lr_warmup_steps >= hp.schedule_steps:
        return Refusal(
            f"lr_warmup_steps {hp.lr_warmup_steps} leaves nothing of schedule_steps {hp.schedule_steps}",
            {"lr_warmup_steps": hp.schedule_steps // 100},
        )
    return None


def _enough_data(p: Proposal) -> Refusal | None:
    if p.generated_sequences is None or p.generated_sequences >= p.global_batch_size:
        return None
    return Refusal(
        f"one step takes GBS = {p.global_batch_size} sequences, the generated data has {p.generated_sequences}",
        {"data.generated_sequences": p.global_batch_size},
    )


CHECKS: Sequence[Check] = (
    *SPLIT_CHECKS,
    _precision,
    _autocast_dtype,
    _fp8,
    _zero_stage,
    _gathered_layers,
    _collectives,
    _optimizer_state,
    _adapters,
    _packing,
    _padding,
    _main_weights_at_stage_0,
    _offload,
    _sequence_length,
    _flex_needs_accelerator,
    _vendor_attention,
    _compile_under_zero3,
    _loss,
    _z_loss,
    _schedule,
    _enough_data,
)
