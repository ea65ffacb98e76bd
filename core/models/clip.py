"""The CLIP vision tower (Radford et al. 2021, arXiv:2103.00020) as far as LLaVA uses it.

Features come from the last but one layer, so the last one, and the norm behind it, are never built.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.models.block import Block
from schemas.model import VisionSpec


class ClipAttention(nn.Module):
    """Full (not causal) attention with biases."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        size = vision.hidden_size
        self.heads = (vision.num_heads, size // vision.num_heads)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.q_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[N, T, hidden]`` to the same shape."""
        query, key, value = (
            projection(hidden).unflatten(-1, self.heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class ClipMlp(nn.Module):
    """Two layers with the sigmoid approximation of GELU that CLIP was trained with."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision.hidden_size, vision.intermediate_size)
        self.fc2 = nn.Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[N, T, hidden]`` to the same shape."""
        wide = self.fc1(hidden)
        out: Tensor = self.fc2(wide * torch.sigmoid(1.702 * wide))
        return out


class ClipBlock(Block):
    """Pre-norm attention and MLP."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.self_attn = ClipAttention(vision)
        self.layer_norm1 = nn.LayerNorm(vision.hidden_size, eps=vision.norm_eps)
        self.mlp = ClipMlp(vision)
        self.layer_norm2 = nn.LayerNorm(vision.hidden_size, eps=vision.norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[N, T, hidden]`` to the same shape."""
        return self.run(hidden)

    def body(self, hidden: Tensor) -> Tensor:
        """What ``forward`` does, without checkpointing."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        out: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return out


class ClipEmbeddings(nn.Module):
    """One token per patch and a class token before them, with learned positions."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        size, patch = vision.hidden_size, vision.patch_size
        self.class_embedding = nn.Parameter(torch.empty(size))
        self.patch_embedding = nn.Conv2d(3, size, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(vision.image_tokens + 1, size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels ``[N, 3, image_size, image_size]`` to ``[N, 1 + patches, hidden]``."""
        pixels = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        # Looked up by its module's forward, around which a sharded weight is gathered; a buffer of positions
        # would not survive the way over the meta device.
        positions = torch.arange(patches.shape[1] + 1, device=patches.device)
        out: Tensor = torch.cat((first, patches), dim=1) + self.position_embedding(positions)
        return out


class ClipEncoder(nn.Module):
    """The layers up to the one that features are taken from."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipBlock(vision) for _ in range(vision.used_layers))


class ClipVisionTower(nn.Module):
    """Patch features of images; frozen in every recipe, so it runs without gradients."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(vision)
        self.pre_layrnorm = nn.LayerNorm(vision.hidden_size, eps=vision.norm_eps)
        self.encoder = ClipEncoder(vision)
        self.requires_grad_(False)

    @property
    def blocks(self) -> list[Block]:
        """The encoder's layers, first to last."""
        return [cast(Block, block) for block in self.encoder.layers]

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels ``[N, 3, image_size, image_size]`` to features ``[N, patches, hidden]``; no class token."""
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        for block in self.encoder.layers:
            hidden = block(hidden)
        return cast(Tensor, hidden)[:, 1:]
