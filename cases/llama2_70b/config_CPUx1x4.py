"""The embedded default: four CPU workers, TP2 × PP2, train a scaled-down model on the generated corpus."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="cpu",
    topology="CPUx1x4",
    engine="megatron",
    defaults={
        "model.hidden_size": 128,
        "model.intermediate_size": 344,
        "model.num_layers": 4,
        "model.num_heads": 8,
        "model.num_kv_heads": 2,
        "model.vocab_size": 512,
        "precision": "fp32",
        "tensor_parallel": 2,
        "pipeline_parallel": 2,
        "local_batch_size": 2,
        "sequence_length": 128,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-3,
        "measure.warmup_steps": 5,
        "measure.steps": 40,
        "data.generated_sequences": 1024,
    },
    runs=(Run(id="base"),),
)
