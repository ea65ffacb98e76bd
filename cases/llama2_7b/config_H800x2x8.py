"""Two nodes of eight H800: the published recipe, and with gradient accumulation."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H800x2x8",
    engine="deepspeed",
    defaults={
        "data.generated_sequences": 3072,
        "zero_stage": 3,
        "attention": "sdpa",
        "activation_checkpointing": "full",
    },
    runs=(
        Run(id="base"),
        Run(id="gas64", fix_hp={"gradient_accumulation_steps": 64}),
    ),
)
