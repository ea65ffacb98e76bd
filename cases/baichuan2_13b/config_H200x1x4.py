"""One node of four H200: the published recipe under DeepSpeed, and FSDP2 with fused ALiBi attention."""

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
        # As it was measured: neither cuDNN's attention nor copies between four peers have been yet.
        Run(id="tuned", tuned=True, fix_hp={"collectives": "library", "gathered_layers": 0, "attention": "flex"}),
        Run(id="tuned_bf16_state", tuned=True, fix_hp={"optimizer_state": "bf16_stochastic"}),
    ),
)
