"""LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744): CLIP features of images, projected to tokens of a Llama.

The language model keeps the names of its released checkpoint; ``RELEASES`` tells what the two released forms of
the whole model call each part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from core.models.block import Block
from core.models.clip import ClipVisionTower
from core.models.cross_entropy import Losses
from core.models.llama import Llama2
from core.models.naming import Naming
from schemas.hyperparameters import HyperParameters
from schemas.model import DecoderSpec, VisionSpec

RELEASES: Sequence[Mapping[str, str]] = (
    # llava-hf/llava-1.5-13b-hf; what transformers 5 writes lacks "vision_model".
    {
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.vision_model.": "vision_tower.",
    },
    # liuhaotian/llava-v1.5-13b
    {
        "model.mm_projector.0.": "multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "multi_modal_projector.linear_2.",
        "model.vision_tower.vision_tower.vision_model.": "vision_tower.",
    },
)
"""Beginning of a released tensor's name -> of this model's. What begins with none of a form's keys is the same."""
_WORDS = ("model.embed_tokens.weight", "lm_head.weight")


class Projector(nn.Module):
    """Two layers with GELU between, from the tower's width to the language model's."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """``[N, patches, vision]`` to ``[N, patches, hidden]``."""
        out: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return out


class Llava(Llama2):
    """A Llama whose sequences hold images; transformers' ``LlavaForConditionalGeneration`` gives the same results.

    The tower is frozen; stage ``pretrain`` freezes the language model, too. The path of the images must run in
    every micro-batch on every rank, or ranks whose batch holds none would miss the collectives of sharded weights:
    a batch of text brings one image that no position refers to.
    """

    def __init__(self, spec: DecoderSpec, hp: HyperParameters, vision: VisionSpec) -> None:
        super().__init__(spec, hp)
        self.vision = vision
        if hp.stage == "pretrain":
            self.requires_grad_(False)
        self.vision_tower = ClipVisionTower(vision)
        self.multi_modal_projector = Projector(vision.hidden_size, spec.hidden_size)

    @property
    def naming(self) -> Naming:
        """As released: with the whole tower, and (llava-hf) words for images and padding, 32,064 in all."""
        vision = self.vision
        behind = [f"vision_tower.encoder.layers.{n}." for n in range(vision.used_layers, vision.num_layers)]
        return Naming(RELEASES, unused=(*behind, "vision_tower.post_layernorm."), longer=_WORDS)

    def transformers_config(self) -> None:
        """None: transformers gives the tensors other names."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The tower's layers, then the decoder's."""
        return [*self.vision_tower.blocks, *super().blocks]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        pixel_values: Tensor,
        image_positions: Tensor,
        kept: Tensor | None = None,
    ) -> Losses | Tensor:
        """As a decoder's, with images in place of some tokens.

        ``pixel_values`` are ``[N, 3, size, size]``, N >= 1; ``image_positions``, int64 ``[M]``, tell where the
        first M of their patches go in the flattened ``input_ids``, whose own tokens there do not matter. ``kept``
        are the positions that are not padding, where that is to be dropped.
        """
        hidden = self.model(input_ids, (self.image_tokens(pixel_values), image_positions), kept=kept)
        if kept is not None and labels is not None:
            labels = labels.flatten()[kept].unsqueeze(0)
        found: Losses | Tensor = self.lm_head(hidden, labels)
        return found

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """Pixels ``[N, 3, size, size]`` to the tokens that they become, ``[N * patches, hidden]``."""
        tokens: Tensor = self.multi_modal_projector(self.vision_tower(pixel_values))
        return tokens.flatten(0, 1)
