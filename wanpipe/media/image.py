"""Reads an image as the official code does, and resizes it for the VAE or for CLIP.

Works on pixels on the host; knows neither networks nor entries. Output values are around [-1, 1],
unclamped.
"""

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from wanpipe.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["stretch", "cover", "pad"]
Resample = Literal["bicubic", "lanczos"]
LARGEST_RESIZED = 2**28  # pixels; only an image far narrower than its canvas needs more
CLIP_SIZE = 224
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def open_image(path: Path) -> "Image.Image":
    """Read an image as RGB. Drops alpha, ignores EXIF orientation, takes the first frame of an
    animation.

    Raises UsageError if it cannot be read or is larger than Pillow considers safe.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UsageError(
            f"image {path} is too large; it may have at most {Image.MAX_IMAGE_PIXELS} pixels"
        ) from error
    except FileNotFoundError as error:
        raise UsageError(f"no image at {path}") from error
    # Pillow raises all of these for damaged files: SyntaxError for PNG, RuntimeError for AVIF
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"image {path} cannot be read: {reason}; give a PNG or JPEG") from error


def fit(
    image: "Image.Image", width: int, height: int, mode: Mode, resample: Resample
) -> np.ndarray:
    """Fit an RGB image to a canvas. Returns (Y, X, 3) float32 in [-1, 1], plus bicubic overshoot.

    "stretch" ignores the aspect ratio, "cover" crops to the center, "pad" adds black.
    Source: wan/image2video.py (bicubic stretch), wan/textimage2video.py (lanczos cover).
    """
    size = _resized(image, width, height, mode)
    if size[0] * size[1] > LARGEST_RESIZED:
        raise UsageError(
            f"image of {image.width}x{image.height} is too narrow to {mode} {width}x{height}; "
            "crop it first"
        )
    pixels = _resize(image, *size, resample)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    if mode == "pad":
        canvas = np.full((height, width, 3), -1.0, dtype=np.float32)
        canvas[-top : size[1] - top, -left : size[0] - left] = pixels
        return canvas
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def clip_pixels(image: "Image.Image") -> np.ndarray:
    """Resize the whole RGB image for CLIP: (224, 224, 3) float32, normalized by CLIP's mean and
    standard deviation.

    Source: wan/modules/clip.py, CLIPModel.visual.
    """
    pixels = bicubic(np.asarray(image), CLIP_SIZE, CLIP_SIZE)
    return (pixels * 0.5 + 0.5 - CLIP_MEAN) / CLIP_STD


def _resized(image: "Image.Image", width: int, height: int, mode: Mode) -> tuple[int, int]:
    if mode == "stretch":
        return width, height
    scales = width / image.width, height / image.height
    scale = max(scales) if mode == "cover" else min(scales)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _resize(image: "Image.Image", width: int, height: int, resample: Resample) -> np.ndarray:
    from PIL import Image

    if resample == "bicubic":
        return bicubic(np.asarray(image), height, width)
    return signed(np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)))


def signed(pixels: np.ndarray) -> np.ndarray:
    """Map uint8 pixels to float32 in [-1, 1], with the rounding of torchvision's to_tensor."""
    return (pixels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def bicubic(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (Y, X, 3) uint8 to float32 like torch's interpolate: a = -0.75, no antialiasing.

    Corners are not aligned, edge pixels are repeated, overshoot beyond [-1, 1] is kept.
    """
    rows, row_weights = _taps(pixels.shape[0], height)
    columns, column_weights = _taps(pixels.shape[1], width)
    out = np.zeros((height, width, 3), dtype=np.float32)
    for row, row_weight in zip(rows, row_weights, strict=True):
        band = signed(pixels[row])
        across = sum(
            weight[None, :, None] * band[:, column]
            for column, weight in zip(columns, column_weights, strict=True)
        )
        out += row_weight[:, None, None] * across
    return out


def _taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the four source indices and weights of every target position, each (4, target)."""
    # float32 rounded after a fused multiply-add, as in torch: matters by 1e-4 at 1000 pixels
    scale = float(np.float32(size) / np.float32(target))
    position = (scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32)
    first = np.floor(position)
    offsets = np.arange(-1, 3)[:, None]
    weights = _cubic(np.abs((position - first).astype(np.float64) - offsets))
    indices = np.clip(first.astype(np.int64) + offsets, 0, size - 1)
    return indices, weights.astype(np.float32)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Evaluate Keys' cubic kernel at distances in [0, 2]."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights: np.ndarray = np.where(distance <= 1, near, far)
    return weights
