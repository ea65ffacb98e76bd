"""The published row: one node of eight Moore Threads S4000 under DeepSpeed, amp, SDPA, checkpointing."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="torch_musa",
    topology="S4000x1x8",
    engine="deepspeed",
    defaults={
        "zero_stage": 3,
        "attention": "sdpa",
        "activation_checkpointing": "full",
    },
    runs=(Run(id="base"),),
)
