"""Two H200 of one node: FSDP2 with fused ALiBi attention.

The published recipe (ZeRO-1) would take 129 GiB a chip before activations: 4 bytes a parameter for weights and
gradients in bf16, and half of the optimizer's 12.
"""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x2",
    engine="torch",
    runs=(
        Run(
            id="tuned",
            fix_hp={
                "zero_stage": 3,
                "attention": "flex",
                "compile": True,
                "loss": "chunked",
            },
        ),
        Run(
            id="tuned_bf16_state",
            fix_hp={
                "optimizer_state": "bf16_stochastic",
                "attention": "flex",
                "compile": True,
                "loss": "chunked",
            },
            remark="as on one chip",
        ),
    ),
)
