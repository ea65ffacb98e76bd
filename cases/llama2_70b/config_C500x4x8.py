"""The published rows: four nodes of eight MetaX C500 (64 GB), tensor and pipeline parallel.

The sheet prints no list of layers. These relieve the last stage, which has the output head.
"""

from schemas.case import HardwareConfig, Run

TP8PP4 = {"tensor_parallel": 8, "pipeline_parallel": 4, "pipeline_layers": "20-20-21-19"}
TP4PP8 = {"tensor_parallel": 4, "pipeline_parallel": 8, "pipeline_layers": "10-10-10-10-10-10-11-9"}

CONFIG = HardwareConfig(
    vendor="metax",
    topology="C500x4x8",
    engine="megatron",
    defaults={
        "attention": "sdpa",
        "activation_checkpointing": "selective",
        "data.generated_sequences": 2048,
    },
    runs=(
        Run(id="fp32_tp8pp4", fix_hp={"precision": "fp32", **TP8PP4}),
        Run(id="amp_tp8pp4", fix_hp=TP8PP4),
        Run(id="amp_tp4pp8", fix_hp=TP4PP8),
        Run(
            id="amp_tp4pp8_gas1024",
            fix_hp={**TP4PP8, "gradient_accumulation_steps": 1024},
            remark="GBS=1024=4M tokens",
        ),
    ),
)
