"""One node of four H200: the published recipe under DeepSpeed, FSDP2 without checkpointing, and its alignment."""

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
        Run(id="tuned", tuned=True, fix_hp={"collectives": "library"}),
        Run(id="tuned_bf16_state", tuned=True, fix_hp={"optimizer_state": "bf16_stochastic"}),
        *RUNS,  # for references/h200x4_fp32.json, which has yet to be measured
    ),
)
