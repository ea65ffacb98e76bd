"""One node of four H200: both stages as published, with half the ranks and so half the GBS, and a faster one."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x4",
    engine="torch",
    # The first batch without images comes in the fifth step; memory grows then, and kernels meet new shapes.
    defaults={"data.generated_sequences": 2048, "measure.warmup_steps": 8},
    runs=(
        Run(
            id="pretrain",
            engine="deepspeed",
            fix_hp={
                "stage": "pretrain",
                "zero_stage": 2,
                "local_batch_size": 32,
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
            fix_hp={"attention": "sdpa", "activation_checkpointing": "full"},
        ),
        Run(
            id="finetune_tuned",
            fix_hp={
                "local_batch_size": 8,
                "gradient_accumulation_steps": 2,
                "padding": "dropped",
                "attention": "sdpa",
                "compile": True,
                "loss": "chunked",
                "collectives": "peer_copies",
            },
        ),
    ),
)
