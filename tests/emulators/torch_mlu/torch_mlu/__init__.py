"""An emulated stand-in for Cambricon's torch_mlu: host memory, gloo under the name cncl. Not the vendor's."""

from types import SimpleNamespace

import torch

from torch_mlu import kernels, mlu

__version__ = "emulated"

# As the vendor's, it has TF32 on for convolutions.
torch.backends.mlu = SimpleNamespace(
    matmul=SimpleNamespace(allow_tf32=False), custom=SimpleNamespace(allow_tf32=False)
)
torch.backends.cnnl = SimpleNamespace(allow_tf32=True)
torch.version.mlu = "emulated"
mlu.install()
library = kernels.define("PrivateUse1")
