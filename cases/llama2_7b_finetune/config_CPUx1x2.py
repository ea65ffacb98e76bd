"""The embedded default: two CPU workers train adapters of a scaled-down model on generated dialogues."""

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
        "model.num_kv_heads": 4,
        "model.vocab_size": 512,
        "precision": "fp32",
        "local_batch_size": 4,
        "sequence_length": 128,
        "learning_rate": 1e-2,
        "data.generated_sequences": 96,
    },
    runs=(Run(id="base"),),
)
