"""One node of four H200: the published recipe under DeepSpeed, and ours with fused ALiBi attention."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x4",
    engine="torch",
    runs=(
        Run(
            id="published",
            engine="deepspeed",
            fix_hp={"zero_stage": 1, "attention": "eager", "activation_checkpointing": "full"},
        ),
        Run(id="tuned", tuned=True),
        Run(id="tuned_bf16_state", tuned=True, fix_hp={"optimizer_state": "bf16_stochastic"}),
    ),
)
