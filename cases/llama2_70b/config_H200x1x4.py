"""One node of four H200: the architecture with as many layers as 141 GB hold, each way of splitting it.

A parameter takes 18 bytes (bf16 with its fp32 main weight, moments and gradient), a layer 856 million parameters,
and its activations at 4096 tokens about 1.2 GB, which a pipeline's first rank holds for each of its micro-batches.
"""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x4",
    engine="megatron",
    defaults={"precision": "bf16", "attention": "sdpa", "compile": True, "gradient_accumulation_steps": 32},
    runs=(
        Run(id="tp4", fix_hp={"model.num_layers": 24, "tensor_parallel": 4}),
        Run(id="tp2pp2", fix_hp={"model.num_layers": 24, "tensor_parallel": 2, "pipeline_parallel": 2}),
        Run(id="pp4", fix_hp={"model.num_layers": 24, "pipeline_parallel": 4, "sequence_parallel": False}),
        Run(
            id="tp2dp2",
            fix_hp={"model.num_layers": 18, "tensor_parallel": 2, "gradient_accumulation_steps": 16},
        ),
    ),
)
