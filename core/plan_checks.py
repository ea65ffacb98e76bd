"""Plans that cannot be: each check gives the reason and the smallest change that removes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core.engines.catalog import engine_spec
from schemas.chip import ChipSpec
from schemas.hyperparameters import HyperParameters, OverrideValue
from schemas.model import DecoderSpec
from schemas.units import Topology


@dataclass(frozen=True)
class Proposal:
    """What the checks look at."""

    engine: str
    chip: ChipSpec
    topology: Topology
    hp: HyperParameters
    model: DecoderSpec
    generated_sequences: int | None
    """Length of the generated corpus; None when prepared data is read."""

    @property
    def data_parallel(self) -> int:
        """DP, rounded down where TP × PP does not divide the world size."""
        return self.topology.world_size // (self.hp.tensor_parallel * self.hp.pipeline_parallel)

    @property
    def global_batch_size(self) -> int:
        """GBS = LBS × GAS × DP."""
        return self.hp.local_batch_size * self.hp.gradient_accumulation_steps * self.data_parallel


@dataclass(frozen=True)
class Refusal:
    """Why a plan cannot be, and the change that brings the nearest one that can."""

    reason: str
    change: dict[str, OverrideValue]


Check = Callable[[Proposal], Refusal | None]


def refusals(proposal: Proposal) -> list[Refusal]:
    """Everything that is wrong with ``proposal``; empty when it can run."""
    return [refusal for check in CHECKS if (refusal := check(proposal))]


def nearest(proposal: Proposal) -> dict[str, OverrideValue]:
    """The changes that make ``proposal`` pass every check, found by applying each refusal's own."""
    changes: dict[str, OverrideValue] = {}
    for _ in range(3 * len(CHECKS)):
        found = refusals(proposal)
        if not found:
            return changes
        changes |= found[0].change
        proposal = _with(proposal, found[0].change)
    raise AssertionError(f"the checks contradict each other: {changes}")


def _with(proposal: Proposal, change: dict[str, OverrideValue]) -> Proposal:
    sequences = change.get("data.generated_sequences", proposal.generated_sequences)
    assert sequences is None or isinstance(sequences, int)
    hp = {key: value for key, value in change.items() if "." not in key}
    return replace(proposal, hp=proposal.hp.model_copy(update=hp), generated_sequences=sequences)


def _divides_world(p: Proposal) -> Refusal | None:
    tp, pp, world = p.hp.tensor_parallel, p.hp.pipeline_parallel, p.topology.world_size
    if world % (tp * pp) == 0:
        return None
    return Refusal(
        f"TP{tp} × PP{pp} = {tp * pp} does not divide the {world} chips of {p.topology}", _nearest_split(p)
    )


def _heads_divide(p: Proposal) -> Refusal | None:
    tp, heads, kv_heads = p.hp.tensor_parallel, p.model.num_heads, p.model.num_kv_heads
    if heads % tp == 0 and kv_heads % tp == 0:
        return None
    return Refusal(
        f"TP{tp} does not divide {heads} attention heads and {kv_heads} key/value heads", _nearest_split(p)
    )


def _layers_divide(p: Proposal) -> Refusal | None:
    pp, layers = p.hp.pipeline_parallel, p.model.num_layers
    if layers % pp == 0:
        return None
    return Refusal(f"PP{pp} does not divide {layers} layers", _nearest_split(p))


def _model_parallel(p: Proposal) -> Refusal | None:
    if engine_spec(p.engine).model_parallel or p.hp.tensor_parallel * p.hp.pipeline_parallel == 1:
        return None
    return Refusal(
        f"engine {p.engine} splits no model over ranks (TP{p.hp.tensor_parallel}PP{p.hp.pipeline_parallel})",
        _nearest_split(p),
    )


def _precision(p: Proposal) -> Refusal | None:
    known = engine_spec(p.engine).precisions
    if p.hp.precision in known:
        return None
    return Refusal(
        f"engine {p.engine} does not run precision {p.hp.precision} (only {', '.join(known)})",
        {"precision": "bf16"},
    )


def _zero_stage(p: Proposal) -> Refusal | None:
    known = engine_spec(p.engine).zero_stages
    if p.hp.zero_stage in known:
        return None
    return Refusal(
        f"engine {p.engine} has no ZeRO stage {p.hp.zero_stage} (only {', '.join(map(str, known))})",
        {"zero_stage": min(stage for stage in known if stage >= p.hp.zero_stage)},
    )


def _optimizer_state(p: Proposal) -> Refusal | None:
    state, known = p.hp.optimizer_state, engine_spec(p.engine).optimizer_states
    if state not in known:
        return Refusal(
            f"engine {p.engine} keeps no {state} optimizer state (only {', '.join(known)})",
            {"optimizer_state": "fp32"},
        )
    if state == "bf16_stochastic" and p.hp.precision != "bf16":
        return Refusal(
            f"optimizer_state bf16_stochastic goes with precision bf16, not {p.hp.precision}",
            {"optimizer_state": "fp32"},
        )
    return None


def _main_weights_at_stage_0(p: Proposal) -> Refusal | None:
    if not (p.engine == "deepspeed" and p.hp.precision == "bf16" and p.hp.zero_stage == 0):
        return None
    return Refusal("DeepSpeed keeps no fp32 main weights for bf16 at ZeRO stage 0", {"zero_stage": 1})


def _offload(p: Proposal) -> Refusal | None:
    if p.hp.offload not in engine_spec(p.engine).offloads:
        return Refusal(f"engine {p.engine} does not offload the {p.hp.offload} state", {"offload": "none"})
    if p.hp.offload != "none" and p.hp.zero_stage == 0:
        return Refusal("offload needs a sharded optimizer (ZeRO stage 1 to 3)", {"zero_stage": 1})
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


def _compile_under_zero3(p: Proposal) -> Refusal | None:
    if not (p.engine == "deepspeed" and p.hp.zero_stage == 3 and p.hp.compile):
        return None
    return Refusal(
        "ZeRO stage 3 gathers parameters in module hooks, which torch.compile cannot trace", {"compile": False}
    )


def _schedule(p: Proposal) -> Refusal | None:
    hp = p.hp
    if hp.schedule != "constant" and hp.schedule_steps is None:
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
        f"one step takes GBS = {p.global_batch_size} sequences, the generated corpus has {p.generated_sequences}",
        {"data.generated_sequences": p.global_batch_size},
    )


CHECKS: Sequence[Check] = (
    _divides_world,
    _heads_divide,
    _layers_divide,
    _model_parallel,
    _precision,
    _zero_stage,
    _optimizer_state,
    _main_weights_at_stage_0,
    _offload,
    _sequence_length,
    _flex_needs_accelerator,
    _compile_under_zero3,
    _schedule,
    _enough_data,
)


def _nearest_split(p: Proposal) -> dict[str, OverrideValue]:
    """TP and PP closest to the wanted ones that world size, heads, layers and engine allow, all at once.

    Judged one by one, each check would undo what another one asked for.
    """
    model, world = p.model, p.topology.world_size
    sizes = _divisors(world) if engine_spec(p.engine).model_parallel else [1]
    possible = [
        (tp, pp)
        for tp in sizes
        for pp in sizes
        if not (world % (tp * pp) or model.num_heads % tp or model.num_kv_heads % tp or model.num_layers % pp)
    ]
    tp, pp = min(
        possible,
        key=lambda split: abs(split[0] - p.hp.tensor_parallel) + abs(split[1] - p.hp.pipeline_parallel),
    )
    return {"tensor_parallel": tp, "pipeline_parallel": pp}


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
