"""Precision alignment on one CPU worker: the loss falls by more than half, and no wrong run follows it."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="cpu",
    topology="CPUx1x1",
    engine="torch",
    defaults={
        "model.hidden_size": 64,
        "model.intermediate_size": 176,
        "model.num_layers": 2,
        "model.num_heads": 4,
        "model.num_kv_heads": 4,
        "model.vocab_size": 512,
        "precision": "fp32",
        "local_batch_size": 8,
        "sequence_length": 64,
        "gradient_accumulation_steps": 2,
        "learning_rate": 4e-3,
        "measure.warmup_steps": 5,
        "measure.steps": 55,
        "data.generated_sequences": 1024,
    },
    runs=(
        Run(id="reference", fix_hp={"attention": "eager"}),  # its curve is references/cpu_fp32.json
        Run(id="align", fix_hp={"attention": "sdpa", "activation_checkpointing": "full", "loss": "chunked"}),
    ),
)
