"""The shape of a decoder-only language model, enough to build it and to count its FLOPs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import Schema


class DecoderSpec(Schema):
    """A decoder-only transformer. ``factory`` builds it, so a case can bring a model of its own."""

    factory: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """``module:callable``, called as ``callable(spec, hp)``, of a case with a vision tower as ``callable(spec, hp,
    vision)``; returns a ``core.models.decoder.Decoder``."""
    nominal_parameters: PositiveInt
    """The number the model is named after (7e9, 13e9); the ``flagperf`` FLOPs rule uses it."""
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    vocab_size: PositiveInt
    max_positions: PositiveInt
    position: Literal["rope", "alibi"] = "rope"
    rope_theta: PositiveFloat = 10000.0
    norm_eps: PositiveFloat
    initializer_range: PositiveFloat = 0.02

    @property
    def head_size(self) -> int:
        """Channels per attention head."""
        return self.hidden_size // self.num_heads

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_heads {self.num_heads} is the odd head size "
                f"{self.head_size}; rope turns channels in pairs"
            )
        return self


class VisionSpec(Schema):
    """A CLIP vision tower whose patch features become tokens of a decoder."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    """As released; nothing behind the layer that features come from is built."""
    num_heads: PositiveInt
    image_size: PositiveInt
    """Height and width of an image, in pixels."""
    patch_size: PositiveInt
    feature_layer: Annotated[int, Field(le=-1)] = -2
    """Which layer's output serves, counted from behind: -1 is the last."""
    norm_eps: PositiveFloat = 1e-5

    @property
    def used_layers(self) -> int:
        """Layers that the features pass."""
        return self.num_layers + 1 + self.feature_layer

    @property
    def image_tokens(self) -> int:
        """Tokens that an image becomes, one per patch."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.used_layers < 1:
            raise ValueError(f"feature_layer {self.feature_layer} lies before the {self.num_layers} layers")
        return self
