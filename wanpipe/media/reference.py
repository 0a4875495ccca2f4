"""Fits a reference image for VACE to the size of the video, as the official code does."""

from typing import TYPE_CHECKING

import numpy as np

from wanpipe.errors import UsageError
from wanpipe.media.image import pixels_of, signed

if TYPE_CHECKING:
    from PIL import Image

WHITE = 1.0


def place_reference(image: "Image.Image", width: int, height: int) -> np.ndarray:
    """Fit an RGB image inside a white canvas: (height, width, 3) float32 in [-1, 1].

    It is enlarged or reduced, never cropped, and centered. Raises UsageError where nothing of it
    would be left. Source: wan/vace.py, WanVace.prepare_source.
    """
    pixels = signed(pixels_of(image))
    if (image.width, image.height) == (width, height):
        return pixels
    scale = min(height / image.height, width / image.width)
    rows, columns = int(image.height * scale), int(image.width * scale)
    if not rows or not columns:
        raise UsageError(
            f"a reference of {image.width}x{image.height} is too narrow for {width}x{height}; "
            "crop it first"
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas = np.full((height, width, 3), WHITE, np.float32)
    canvas[top : top + rows, left : left + columns] = _bilinear(pixels, rows, columns)
    return canvas


def _bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (Y, X, 3) float32 as torch's interpolate: no antialiasing, corners not aligned."""
    above, below, down = _pairs(pixels.shape[0], height)
    before, after, across = _pairs(pixels.shape[1], width)
    down, across = down[:, None, None], across[:, None]
    one, other = (
        pixels[rows][:, before] * (1 - across) + pixels[rows][:, after] * across
        for rows in (above, below)
    )
    resized: np.ndarray = one * (1 - down) + other * down
    return resized


def _pairs(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two inputs of every output, and the weight of the second."""
    scale = float(np.float32(size) / np.float32(target))
    # float32 after a fused multiply-add, as in torch
    position = np.maximum(scale * (np.arange(target) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(position.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), position - first.astype(np.float32)
