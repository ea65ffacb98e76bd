"""The published rows. What the sheet calls fp32 did 75 TFLOP/s, which an A100 only does in tf32."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="A100x1x1",
    engine="torch",
    defaults={"attention": "eager"},
    runs=(
        Run(id="base"),
        Run(id="fp16", fix_hp={"precision": "fp16", "local_batch_size": 4}),
    ),
)
