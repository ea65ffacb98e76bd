"""One node of four H200: both stages as published (more micro-batches on half the ranks), and a faster one."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x4",
    engine="torch",
    defaults={"data.generated_sequences": 2048},
    runs=(
        Run(
            id="pretrain",
            engine="deepspeed",
            fix_hp={
                "stage": "pretrain",
                "zero_stage": 2,
                "local_batch_size": 32,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-3,
                "schedule_steps": 2180,
                "lr_warmup_steps": 66,
                "attention": "sdpa",
                "activation_checkpointing": "full",
            },
        ),
        Run(
            id="finetune",
            engine="deepspeed",
            fix_hp={"gradient_accumulation_steps": 2, "attention": "sdpa", "activation_checkpointing": "full"},
        ),
        Run(
            id="finetune_tuned",
            fix_hp={
                "local_batch_size": 8,
                "gradient_accumulation_steps": 4,
                "attention": "sdpa",
                "compile": True,
                "loss": "chunked",
            },
        ),
    ),
)
