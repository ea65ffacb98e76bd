"""Two CPU workers train a scaled-down model: for trying things out, never ranked."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="cpu",
    topology="CPUx1x2",
    engine="torch",
    defaults={
        "model.hidden_size": 128,
        "model.intermediate_size": 344,
        "model.num_layers": 4,
        "model.num_heads": 4,
        "model.num_kv_heads": 2,
        "model.vocab_size": 512,
        "precision": "fp32",
        "zero_stage": 3,
        "local_batch_size": 4,
        "sequence_length": 128,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-3,
        "data.generated_sequences": 1024,
    },
    runs=(Run(id="base"),),
)
