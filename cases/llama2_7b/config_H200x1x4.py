"""One node of four H200: the published recipe under DeepSpeed, ours without checkpointing, and its alignment."""

from schemas.case import HardwareConfig, Run

from .alignment import RUNS

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
        Run(id="tuned", tuned=True),
        Run(id="tuned_bf16_state", tuned=True, fix_hp={"optimizer_state": "bf16_stochastic"}),
        *RUNS,  # references/h200x4_fp32.json
    ),
)
