"""Pixels against transformers' CLIP image processor, and images that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from core.data.conversations.images import load_pixels, pad_to_square
from core.data.skipped import BadSampleError


def noise(width: int, height: int, mode: str = "RGB"):
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (40, 40)])
def test_pixels_are_those_of_clips_processor(size: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    noise(*size).save(tmp_path / "a.png")
    square = pad_to_square(noise(*size))
    processor = processors.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    expected = processor(square, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(load_pixels(tmp_path / "a.png", 28, "a.png"), expected, atol=1e-5)


def test_the_padding_is_the_mean_colour_on_both_sides() -> None:
    square = np.asarray(pad_to_square(noise(10, 4)))
    assert square.shape == (10, 10, 3)
    assert (square[:3] == (122, 116, 104)).all()
    assert (square[7:] == (122, 116, 104)).all()
    assert (square[3:7] == np.asarray(noise(10, 4))).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    noise(8, 8, mode).save(tmp_path / "a.png")
    assert load_pixels(tmp_path / "a.png", 14, "a.png").shape == (3, 14, 14)


@pytest.mark.parametrize("damage", ["missing", "truncated", "no image"])
def test_a_broken_image_is_named(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    noise(50, 50).save(file)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:2000] if damage == "truncated" else b"<html>")
    with pytest.raises(BadSampleError, match=r"image coco/a\.png cannot be read"):
        load_pixels(file, 14, "coco/a.png")
