"""The published row: two nodes of eight H800, ZeRO-1, no fused attention for ALiBi, hence checkpointing."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H800x2x8",
    engine="deepspeed",
    defaults={
        "data.generated_sequences": 1024,
        "zero_stage": 1,
        "attention": "eager",
        "activation_checkpointing": "full",
    },
    runs=(
        Run(id="base"),
        Run(id="gas64", fix_hp={"gradient_accumulation_steps": 64}, remark="globalbs=2M tokens"),
    ),
)
