"""One node of four H200: layouts of as many of the 80 layers as each of them has room for, and an alignment.

A parameter takes 18 bytes (bf16 with its fp32 main weight, moments and gradient), a layer 856 million parameters,
and its activations at 4096 tokens about 1.2 GB, which a pipeline's first rank holds for each of its micro-batches.
``tuned`` has few enough to leave room for two sequences at a time beside all 16-bit weights on each rank.
``align_reference`` is the curve that ``align`` is held against: 1.3 billion parameters of the same architecture.
"""

from schemas.case import HardwareConfig, Run

TP2PP2 = {"tensor_parallel": 2, "pipeline_parallel": 2}
SMALL = {
    "model.hidden_size": 2048,
    "model.intermediate_size": 5632,
    "model.num_layers": 24,
    "model.num_heads": 16,
    "model.num_kv_heads": 4,
    "sequence_length": 1024,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "lr_warmup_steps": 20,
    "measure.warmup_steps": 5,
    "measure.steps": 55,
    "data.generated_sequences": 2048,
}

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x4",
    engine="megatron",
    defaults={
        "precision": "bf16",
        "attention": "sdpa",
        "compile": True,
        "gradient_accumulation_steps": 16,
        "model.num_layers": 24,
        "measure.warmup_steps": 3,
    },
    runs=(
        Run(id="tp4", fix_hp={"tensor_parallel": 4}),
        Run(id="tp2pp2", fix_hp=TP2PP2),
        Run(id="pp4", fix_hp={"pipeline_parallel": 4, "sequence_parallel": False}),
        Run(
            id="tp2dp2",
            fix_hp={"model.num_layers": 18, "tensor_parallel": 2, "gradient_accumulation_steps": 8},
        ),
        Run(
            id="tuned",
            engine="torch",
            tuned=True,
            fix_hp={
                "model.num_layers": 16,
                "sequence_parallel": False,
                "local_batch_size": 2,
                "gradient_accumulation_steps": 2,
            },
        ),
        Run(
            id="align_reference",
            engine="torch",
            fix_hp={
                **SMALL,
                "precision": "fp32",
                "compile": False,
                "sequence_parallel": False,
                "zero_stage": 3,
                "local_batch_size": 4,
                "gradient_accumulation_steps": 1,
            },
        ),
        Run(
            id="align",
            fix_hp={**SMALL, **TP2PP2, "local_batch_size": 2, "gradient_accumulation_steps": 8},
        ),
    ),
)
