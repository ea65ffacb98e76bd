"""One H200. fp32 main weights and moments (207 GiB) cannot fit, so all runs keep them in bf16.

``published`` is the recipe of the published H800 row; ``tuned`` the fastest that was found for this chip.
``align_reference`` is the curve that ``align`` is held against: four of the 40 layers in fp32, the plainest way.
Micro-batches are two, and of two chunks of the loss each, so that both kinds of accumulation are in the verdict.
"""

from schemas.case import HardwareConfig, Run

CURVE = {
    "model.num_layers": 4,
    "local_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "sequence_length": 2176,
    "learning_rate": 2e-5,
    "lr_warmup_steps": 20,
    "measure.warmup_steps": 5,
    "measure.steps": 55,
    "measure.min_window_s": 0.0,
}
"""60 steps, run for their losses: fp32 takes a good second for each."""

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x1",
    engine="torch",
    defaults={"optimizer_state": "bf16_stochastic"},
    runs=(
        Run(id="published", fix_hp={"attention": "eager", "activation_checkpointing": "full"}),
        Run(id="tuned", tuned=True),
        Run(id="tuned_fp8", tuned=True, fix_hp={"precision": "fp8"}),
        Run(
            id="eager",
            fix_hp={"attention": "eager", "compile": True, "loss": "chunked"},
            remark="for the annex: without flash attention",
        ),
        Run(
            id="eager_checkpointing",
            fix_hp={
                "attention": "eager",
                "activation_checkpointing": "full",
                "compile": True,
                "loss": "chunked",
            },
            remark="for the annex: without flash attention, with checkpointing",
        ),
        Run(
            id="align_reference",
            fix_hp={**CURVE, "precision": "fp32", "optimizer_state": "fp32", "attention": "eager"},
        ),  # references/h200_4_layers_fp32.json
        Run(id="align", tuned=True, fix_hp=CURVE),
        Run(id="align_fp8", tuned=True, fix_hp={**CURVE, "precision": "fp8"}),
    ),
)
