"""How long the samples of a data set are: a histogram that generated samples are drawn from."""

from __future__ import annotations

import math

from pydantic import NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

from schemas.base import Schema


class LengthBin(Schema):
    """Samples longer than the bin before, and up to ``tokens`` long."""

    tokens: PositiveInt
    """Tokens of text, those of an image apart."""
    with_image: NonNegativeInt = 0
    text_only: NonNegativeInt = 0
    """Numbers of samples."""


class LengthHistogram(Schema):
    """Of the samples of a data set, how many have which length, with an image and without."""

    source: str
    """Where the numbers come from, or that they were estimated, and from what."""
    bins: tuple[LengthBin, ...]

    @property
    def samples(self) -> int:
        """All of them."""
        return sum(one.with_image + one.text_only for one in self.bins)

    @property
    def text_share(self) -> float:
        """Share of the samples without an image."""
        return sum(one.text_only for one in self.bins) / self.samples

    def quantile(self, share: float) -> tuple[int, bool]:
        """Length of the sample at ``share`` (0 to 1) of all, and whether it has an image; evenly within a bin.

        In order: the samples with an image by length, then those without.
        """
        left = share * self.samples
        for image in (True, False):
            shorter = 0
            for one in self.bins:
                count = one.with_image if image else one.text_only
                if left < count:
                    return shorter + math.ceil((one.tokens - shorter) * max(left / count, 1e-9)), image
                left -= count
                shorter = one.tokens
        return self.bins[-1].tokens, self.bins[-1].text_only == 0

    @model_validator(mode="after")
    def _rising(self) -> Self:
        edges = [one.tokens for one in self.bins]
        if edges != sorted(set(edges)) or not self.samples:
            raise ValueError(f"the bins' tokens must rise and hold samples; they are {edges}")
        return self
