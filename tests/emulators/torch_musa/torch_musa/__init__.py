"""An emulated stand-in for Moore Threads' torch_musa: host memory, gloo under the name mccl. Not the vendor's."""

import sys
from types import SimpleNamespace

import torch

from torch_musa import emulated_device

__version__ = "emulated"
CHIP = emulated_device.Chip(
    device_type="musa",
    device_name="MTT S4000",
    memory_gib=48,
    collectives="mccl",
    capability=(2, 2),
    visible_variable="MUSA_VISIBLE_DEVICES",
)


def autoload() -> None:
    """Called by ``import torch``; importing this module has done it."""


mccl = SimpleNamespace(version=lambda: (0, 0, 0))
# As the vendor's, it turns TF32 on.
torch.backends.mudnn = SimpleNamespace(allow_tf32=True, version=lambda: 0)
torch.version.musa = "emulated"
emulated_device.install(sys.modules[__name__], CHIP)
