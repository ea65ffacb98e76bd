"""The whole model over 60 steps, for curves: tuned runs against ``align_reference``, in fp32, the plainest way.

At the recipe's 1e-5 the gradient norm swings after ten steps, and right runs drift apart: by 6% over 29 steps on
one H200, with and without checkpointing. Hence 3e-6, reached over 20 steps.
"""

from schemas.case import Run

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
"""Of fp32 a step takes some two seconds."""

RUNS = (
    Run(id="align_reference", fix_hp={**CURVE, "precision": "fp32", "attention": "eager", "zero_stage": 3}),
    Run(id="align", tuned=True, fix_hp=CURVE),
    Run(id="align_bf16_state", tuned=True, fix_hp={**CURVE, "optimizer_state": "bf16_stochastic"}),
)
