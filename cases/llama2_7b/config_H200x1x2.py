"""Two H200 of one node: the published recipe under DeepSpeed, and FSDP2 without checkpointing."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x2",
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
    ),
)
