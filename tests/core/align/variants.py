"""Runs of the config that alignment is offered for: as they should be, and each with one fault."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """How a run differs from the reference."""

    sets: dict[str, object] = field(default_factory=dict)
    fault: str | None = None
    world: int = 1
    engine: str = "torch"
    case: str = "llama2_7b"
    config: str = "CPUx1x1"


EAGER = {"attention": "eager", "activation_checkpointing": "none", "loss": "full"}
FAST = {"attention": "sdpa", "activation_checkpointing": "full", "loss": "chunked"}
TWO_RANKS = {**EAGER, "gradient_accumulation_steps": 1}
"""Half the micro-batches on twice the ranks: the same global batch."""
GPU = {
    **EAGER, "model.hidden_size": 128, "model.intermediate_size": 352, "model.num_layers": 2, "model.num_heads": 4,
    "model.num_kv_heads": 4, "model.vocab_size": 512, "precision": "fp32", "optimizer_state": "fp32",
    "local_batch_size": 8, "sequence_length": 256, "gradient_accumulation_steps": 2, "learning_rate": 2e-3,
    "measure.warmup_steps": 5, "measure.steps": 55, "measure.min_window_s": 0, "data.generated_sequences": 1024,
}  # fmt: skip


def on_gpu(fault: str | None = None, **sets: object) -> Variant:
    """A small model on one H200."""
    return Variant({**GPU, **sets}, fault, config="H200x1x1")


HONEST = {
    "eager": Variant(EAGER),
    "sdpa": Variant({**EAGER, "attention": "sdpa"}),
    "chunked_and_checkpointed": Variant(FAST),
    "two_ranks": Variant(TWO_RANKS, world=2),
    "fsdp2_stage_3": Variant({**TWO_RANKS, "zero_stage": 3}, world=2),
}
HONEST_IN_16_BITS = {
    "amp": Variant({**FAST, "precision": "amp"}),
    "bf16": Variant({**FAST, "precision": "bf16"}),
    "bf16_stochastic": Variant({**FAST, "precision": "bf16", "optimizer_state": "bf16_stochastic"}),
}
DEEPSPEED = {"zero_3": Variant({**TWO_RANKS, "zero_stage": 3}, world=2, engine="deepspeed")}
FAULTY = {
    "doubled_learning_rate": Variant(EAGER, "doubled learning rate"),
    "no_causal_mask": Variant(EAGER, "no causal mask"),
    "no_gradient_reduction": Variant(TWO_RANKS, "no gradient reduction", world=2),
    "labels_one_further": Variant(EAGER, "labels one further"),
    "tf32_under_fp32": Variant(EAGER, "TF32 under fp32"),
}
FAULTY_IN_16_BITS = {
    f"{name}_amp": Variant({**variant.sets, "precision": "amp"}, variant.fault, variant.world)
    for name, variant in FAULTY.items()
    if name != "tf32_under_fp32"
}
OTHERS = {
    "flat": Variant({**EAGER, "learning_rate": 1e-5}),
    "flat_doubled": Variant({**EAGER, "learning_rate": 1e-5}, "doubled learning rate"),
    "alibi_eager": Variant(EAGER, case="baichuan2_13b"),
    "alibi_fast": Variant(FAST, case="baichuan2_13b"),
    "alibi_no_mask": Variant(EAGER, "no causal mask", case="baichuan2_13b"),
}
ON_GPU = {
    "gpu_eager": on_gpu(),
    "gpu_sdpa": on_gpu(attention="sdpa"),
    "gpu_flex": on_gpu(attention="flex"),
    "gpu_compiled": on_gpu(**FAST, compile=True),
    "gpu_tf32": on_gpu("TF32 switched on"),
}
GROUPS = ({**HONEST, **HONEST_IN_16_BITS, **FAULTY, **FAULTY_IN_16_BITS, **OTHERS}, DEEPSPEED, ON_GPU)
"""Which are trained together, world size by world size."""
VARIANTS = {name: variant for group in GROUPS for name, variant in group.items()}
