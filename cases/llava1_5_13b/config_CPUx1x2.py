"""The embedded default: two CPU workers run both stages of a scaled-down model on generated pictures."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="cpu",
    topology="CPUx1x2",
    engine="deepspeed",
    defaults={
        "model.hidden_size": 64,
        "model.intermediate_size": 176,
        "model.num_layers": 2,
        "model.num_heads": 4,
        "model.num_kv_heads": 4,
        "model.vocab_size": 512,
        "model.max_positions": 1024,
        "vision.hidden_size": 32,
        "vision.intermediate_size": 64,
        "vision.num_layers": 3,
        "vision.num_heads": 4,
        "vision.image_size": 56,
        "precision": "fp32",
        "local_batch_size": 4,
        "sequence_length": 384,
        "learning_rate": 2e-3,
        "schedule_steps": 30,
        "lr_warmup_steps": 1,
        "measure.warmup_steps": 5,
        "measure.steps": 25,
        "data.generated_sequences": 256,
    },
    runs=(
        Run(id="pretrain", fix_hp={"stage": "pretrain", "zero_stage": 2, "local_batch_size": 8}),
        Run(id="finetune"),
    ),
)
