"""One node of four H200: the published recipe under DeepSpeed, FSDP2 without checkpointing, and its alignment.

``align_reference`` is the curve that ``align`` is held against: the whole model in fp32, the plainest way. At the
recipe's 1e-5 the gradient norm swings after ten steps, and right runs drift apart: by 6% over 29 steps on one
H200, with and without checkpointing. Hence 3e-6, reached over 20 steps.
"""

from schemas.case import HardwareConfig, Run

CURVE = {
    "local_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "sequence_length": 2048,
    "learning_rate": 3e-6,
    "lr_warmup_steps": 20,
    "measure.warmup_steps": 5,
    "measure.steps": 55,
    "measure.min_window_s": 0.0,
}
"""60 steps, run for their losses: fp32 takes some two seconds for each."""

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x4",
    engine="torch",
    defaults={"precision": "bf16"},
    runs=(
        Run(
            id="published",
            engine="deepspeed",
            fix_hp={"zero_stage": 3, "attention": "sdpa", "activation_checkpointing": "full"},
        ),
        Run(id="tuned", tuned=True, fix_hp={"collectives": "library"}),
        Run(id="tuned_bf16_state", tuned=True, fix_hp={"optimizer_state": "bf16_stochastic"}),
        Run(
            id="align_reference", fix_hp={**CURVE, "precision": "fp32", "attention": "eager", "zero_stage": 3}
        ),  # for references/h200_fp32.json, which has yet to be measured
        Run(id="align", tuned=True, fix_hp=CURVE),
    ),
)
