"""The published rows: one node of eight Cambricon MLU under DeepSpeed, the projector first, then the model."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="cambricon",
    topology="MLUx1x8",
    engine="deepspeed",
    defaults={"attention": "sdpa", "activation_checkpointing": "full"},
    runs=(
        Run(
            id="pretrain",
            fix_hp={
                "stage": "pretrain",
                "zero_stage": 2,
                "local_batch_size": 32,
                "learning_rate": 1e-3,
                "schedule_steps": 2180,  # 558,128 samples, 256 a step
                "lr_warmup_steps": 66,
            },
        ),
        Run(id="finetune"),
    ),
)
