"""One H200: the published recipe (SDPA, checkpointing), and the fastest that was found for this chip."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x1",
    engine="torch",
    defaults={"precision": "bf16", "optimizer_state": "bf16_stochastic"},
    runs=(
        Run(id="published", fix_hp={"attention": "sdpa", "activation_checkpointing": "full"}),
        Run(id="tuned", fix_hp={"attention": "sdpa", "compile": True, "loss": "chunked"}),
        Run(
            id="deepspeed",
            engine="deepspeed",
            fix_hp={
                "optimizer_state": "fp32",
                "zero_stage": 3,
                "attention": "sdpa",
                "activation_checkpointing": "full",
            },
        ),
    ),
)
