"""Resizes 8-bit frames by bicubic interpolation with antialiasing, to the last bit as torch does.

NumPy on the host. Knows neither files nor ffmpeg.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wanpipe.errors import UsageError
from wanpipe.media.image import MAX_RESIZED_PIXELS

CHANNELS = 3
MAX_BITS = 22  # of a weight's fraction
WEIGHT_LIMIT = 1 << 15  # weights are 16-bit integers
AT_ONCE = 8  # outputs of one matrix product: more waste work on zeros, fewer on calls
Span = tuple[int, int]  # first output, and the one after the last


def resize(
    pixels: np.ndarray,
    height: int,
    width: int,
    rows: Span | None = None,
    columns: Span | None = None,
) -> np.ndarray:
    """Resize (Y, X, 3) uint8 to (height, width, 3) uint8; with spans, return only that part of it.

    Columns first, then rows, with 8-bit values between. Source: torch's interpolate of 8-bit
    images, mode bicubic, antialias, without aligned corners.
    """
    top, bottom = rows or (0, height)
    left, right = columns or (0, width)
    pixels = (
        pixels[:, left:right]
        if width == pixels.shape[1]
        else _across(pixels, _products(pixels.shape[1], width, left, right))
    )
    if height == pixels.shape[0]:
        return np.ascontiguousarray(pixels[top:bottom])
    return _down(pixels, _products(pixels.shape[0], height, top, bottom))


def resize_crop(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (Y, X, 3) uint8 to cover height x width, and crop the center.

    Raises UsageError where the frame is too narrow. Source: wan/utils/vace_processor.py,
    VaceImageProcessor.resize_crop.
    """
    Y, X = frame.shape[:2]
    scale = max(width / X, height / Y)
    size = round(scale * Y), round(scale * X)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        raise UsageError(
            f"a frame of {X}x{Y} is too narrow to cover {width}x{height}; crop the video first"
        )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resize(frame, *size, (top, top + height), (left, left + width))


@dataclass(frozen=True)
class _Products:
    """How an axis is resized: every block of outputs is a matrix times a span of inputs."""

    blocks: list[tuple[int, int, np.ndarray]]  # first input, one after the last, (outputs, inputs)
    bits: int  # of the weights' fraction


def _across(pixels: np.ndarray, products: _Products) -> np.ndarray:
    """Resize the columns of (Y, X, 3)."""
    flat = pixels.reshape(len(pixels), -1)  # (Y, X * 3)
    parts = []
    for first, last, matrix in products.blocks:
        # one matrix for all three channels: its zeros cost less than sorting pixels by channel
        spread = np.kron(matrix, np.eye(CHANNELS)).T
        values = flat[:, first * CHANNELS : last * CHANNELS].astype(np.float64)
        parts.append(_rounded(values @ spread, products.bits))
    return np.concatenate(parts, axis=1).reshape(len(pixels), -1, CHANNELS)  # (Y, width, 3)


def _down(pixels: np.ndarray, products: _Products) -> np.ndarray:
    """Resize the rows of (Y, X, 3)."""
    flat = pixels.reshape(len(pixels), -1)  # (Y, X * 3)
    parts = [
        _rounded(matrix @ flat[first:last].astype(np.float64), products.bits)
        for first, last, matrix in products.blocks
    ]
    return np.concatenate(parts).reshape(-1, *pixels.shape[1:])  # (height, X, 3)


def _rounded(sums: np.ndarray, bits: int) -> np.ndarray:
    """Divide integers below 2**53 by 2**bits, half up, and clip to a byte."""
    sums += 1 << (bits - 1)
    sums *= 0.5**bits
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8)


@lru_cache(maxsize=8)
def _products(size: int, target: int, start: int, stop: int) -> _Products:
    """Return the products that make outputs `start` to `stop` of `target` from `size` inputs."""
    first, weights, bits = _taps(size, target)
    blocks = []
    for one in range(start, stop, AT_ONCE):
        some = slice(one, min(one + AT_ONCE, stop))
        low, high = int(first[some][0]), min(int(first[some][-1]) + weights.shape[1], size)
        matrix = np.zeros((some.stop - one, high - low + weights.shape[1]))
        for row, at, values in zip(matrix, first[some] - low, weights[some], strict=True):
            row[at : at + len(values)] = values
        blocks.append((low, high, matrix[:, : high - low]))
    return _Products(blocks, bits)


def _taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return every output's first input (target,), integer weights (target, taps), and their
    fraction's bits.
    """
    scale = size / target
    stretch = max(scale, 1.0)
    centers = scale * (np.arange(target) + 0.5)
    first = np.maximum((centers - 2 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + 2 * stretch + 0.5).astype(np.int64), size)
    taps = np.arange((last - first).max())
    inputs = first[:, None] + taps
    weights = _keys(np.abs(inputs - centers[:, None] + 0.5) / stretch)
    weights[inputs >= last[:, None]] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # summed in order, as torch does
    largest, bits = weights.max(), MAX_BITS
    while bits and int(0.5 + largest * (1 << bits)) >= WEIGHT_LIMIT:
        bits -= 1
    # half away from zero
    return first, np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)), bits


def _keys(distance: np.ndarray) -> np.ndarray:
    """Evaluate Keys' cubic kernel with a = -0.5 at distances from 0."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights: np.ndarray = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return weights
