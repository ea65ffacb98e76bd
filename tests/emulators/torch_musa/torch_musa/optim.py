"""The optimizer that torch_musa adds."""

import torch


class FusedAdamW(torch.optim.AdamW):
    """With the vendor's parameters; what it computes is torch's."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), *, eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
