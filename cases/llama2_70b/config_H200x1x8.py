"""One node of eight H200, which hold 56 of the 80 layers: a parameter takes 18 bytes (see config_H200x1x4.py)."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x8",
    engine="megatron",
    defaults={"precision": "bf16", "attention": "sdpa", "compile": True, "gradient_accumulation_steps": 32},
    runs=(
        Run(id="tp8", fix_hp={"model.num_layers": 56, "tensor_parallel": 8}),
        Run(id="tp4pp2", fix_hp={"model.num_layers": 56, "tensor_parallel": 4, "pipeline_parallel": 2}),
    ),
)
