"""One H200. fp32 main weights and moments (207 GiB) cannot fit, so both runs keep them in bf16.

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
        Run(id="tuned", fix_hp={"attention": "flex", "compile": True, "loss": "chunked"}),
    ),
)
