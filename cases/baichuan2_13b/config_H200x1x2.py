"""Two H200 of one node: the published recipe under DeepSpeed, and ours with fused ALiBi attention.

The published recipe (ZeRO-1) takes 129 of the 140 GiB of a chip before activations: 4 bytes a parameter for
weights and gradients in bf16, and half of the optimizer's 12.
"""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x2",
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
