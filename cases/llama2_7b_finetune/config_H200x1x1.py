"""One H200: the published rows' shapes, and the fastest that was found for this chip."""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x1",
    engine="torch",
    defaults={"data.generated_sequences": 1024},
    runs=(
        Run(id="published", fix_hp={"attention": "eager", "data.generated_sequences": 256}),
        Run(
            id="published_fp16",
            fix_hp={
                "attention": "eager",
                "precision": "fp16",
                "local_batch_size": 4,
                "data.generated_sequences": 512,
            },
        ),
        Run(
            id="tuned",
            fix_hp={"precision": "bf16", "local_batch_size": 32, "compile": True, "loss": "chunked"},
        ),
        Run(
            id="document_mask",
            fix_hp={
                "precision": "bf16",
                "local_batch_size": 32,
                "compile": True,
                "loss": "chunked",
                "packing": "document_mask",
            },
        ),
    ),
)
