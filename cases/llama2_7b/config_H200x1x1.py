"""One H200: the published recipe (SDPA, checkpointing), and the fastest that was found for this chip."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x1",
    engine="torch",
    defaults={"precision": "bf16", "optimizer_state": "bf16_stochastic"},
    runs=(
        Run(id="published", fix_hp={"attention": "sdpa", "activation_checkpointing": "full"}),
        Run(id="tuned", tuned=True),
        Run(
            id="eager",
            fix_hp={
                "local_batch_size": 1,
                "gradient_accumulation_steps": 3,
                "attention": "eager",
                "compile": True,
                "loss": "chunked",
            },
            remark="for the annex: without flash attention",
        ),
        Run(
            id="eager_checkpointing",
            fix_hp={
                "attention": "eager",
                "activation_checkpointing": "full",
                "compile": True,
                "loss": "chunked",
            },
            remark="for the annex: without flash attention, with checkpointing",
        ),
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
