"""One H200. fp32 main weights and moments (207 GiB) cannot fit, so all runs keep them in bf16.

``published`` is the recipe of the published H800 row; ``tuned`` the fastest that was found for this chip.
"""

from schemas.case import HardwareConfig, Run

CONFIG = HardwareConfig(
    vendor="nvidia",
    topology="H200x1x1",
    engine="torch",
    defaults={"optimizer_state": "bf16_stochastic"},
    runs=(
        Run(id="published", fix_hp={"attention": "eager", "activation_checkpointing": "full"}),
        Run(id="tuned", tuned=True),
        Run(
            id="eager",
            fix_hp={"attention": "eager", "compile": True, "loss": "chunked"},
            remark="for the annex: without flash attention",
        ),
        Run(
            id="eager_checkpointing",
            fix_hp={
                "attention": "eager",
                "activation_checkpointing": "full",
                "compile": True,
                "loss": "chunked",
            },
            remark="for the annex: without flash attention, with checkpointing",
        ),
    ),
)
