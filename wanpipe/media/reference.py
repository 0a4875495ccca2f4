"""Fits reference images as the official code of VACE does.

NumPy on the host. Knows neither files nor networks.
"""

import numpy as np

from wanpipe.errors import UsageError
from wanpipe.media.image import signed


def fit_on_white(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fit (Y, X, 3) uint8 inside height x width on white: (height, width, 3) float32 in [-1, 1].

    Raises UsageError for an image that is too narrow.
    Source: wan/vace.py, WanVace.prepare_source, and torch's interpolate: bilinear, no antialiasing,
    corners not aligned.
    """
    Y, X = pixels.shape[:2]
    image = signed(pixels)
    if (height, width) == (Y, X):
        return image
    scale = min(height / Y, width / X)
    rows, columns = int(scale * Y), int(scale * X)
    if min(rows, columns) < 1:
        raise UsageError(
            f"a reference image of {X}x{Y} is too narrow for {width}x{height}; crop it first"
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas = np.ones((height, width, 3), dtype=np.float32)
    canvas[top : top + rows, left : left + columns] = bilinear(image, rows, columns)
    return canvas


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (Y, X, 3) float32 to (height, width, 3)."""
    rows, below, down = _between(image.shape[0], height)
    columns, beside, right = _between(image.shape[1], width)
    down, right = down[:, None, None], right[None, :, None]
    upper = image[rows][:, columns] * (1 - right) + image[rows][:, beside] * right
    lower = image[below][:, columns] * (1 - right) + image[below][:, beside] * right
    resized: np.ndarray = upper * (1 - down) + lower * down
    return resized


def _between(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two source positions of every target position, and the weight of the second."""
    scale = np.float32(size) / np.float32(target)
    position = scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (position - first).astype(np.float32)
