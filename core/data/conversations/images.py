"""From an image file to the pixels that CLIP takes, as LLaVA-1.5 prepares them."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from core.data.skipped import BadSampleError

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)
"""Of the pixels that CLIP was trained on, by channel."""
_TABLES = (np.arange(256, dtype=np.float32) / np.float32(255) - MEAN[:, None]) / DEVIATION[:, None]
"""Of each channel, what its 256 values become: a quarter of the time that the arithmetic takes on every pixel."""
_BACKGROUND = (122, 116, 104)
"""The mean colour, as LLaVA rounds it."""

Pixels = npt.NDArray[np.float32]


def load_pixels(file: Path | IO[bytes], size: int, name: str) -> Pixels:
    """The image padded to a square with the mean colour, resized and normalised, ``[3, size, size]``.

    Raises BadSampleError for a file that is missing, or no whole image; ``name`` is what it is called there.
    """
    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"image {name} cannot be read: {error}") from error
    resized = np.asarray(pad_to_square(image).resize((size, size), Image.Resampling.BICUBIC))
    pixels = np.empty((3, size, size), dtype=np.float32)
    for channel, table in enumerate(_TABLES):
        np.take(table, resized[..., channel], out=pixels[channel], mode="clip")
    return pixels


def pad_to_square(image: Image.Image) -> Image.Image:
    """``image`` in the middle of a square of its longer side."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), _BACKGROUND)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
