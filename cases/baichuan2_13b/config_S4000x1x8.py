"""One node of eight Moore Threads S4000 (48 GB): parameters must be sharded to fit."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="torch_musa",
    topology="S4000x1x8",
    engine="deepspeed",
    defaults={
        "zero_stage": 3,
        "attention": "eager",
        "activation_checkpointing": "full",
    },
    runs=(Run(id="base"),),
)
