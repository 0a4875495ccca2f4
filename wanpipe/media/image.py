"""Reads an image as the official code does, and resizes it for the VAE or for CLIP.

Works on pixels on the host; knows neither networks nor entries. Output values are around [-1, 1],
unclamped.
"""

import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from wanpipe.errors import UsageError
from wanpipe.runtime.documents import open_regular
from wanpipe.runtime.report import Report

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["stretch", "cover", "pad"]
Fit = Literal["stretch", "cover", "pad", "official"]  # what a user may ask for
Resample = Literal["bicubic", "lanczos"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
# Pillow reads more formats, and starts other programs for some of them
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
MAX_FILE_BYTES = 2**28  # Pillow reads some formats whole, even for one frame of an animation
MAX_RESIZED_PIXELS = 2**26  # only an image far narrower than its canvas needs more
PIXELS_AT_ONCE = 2**20  # of the source, to bound memory
ORIENTATION = 0x0112  # tag of EXIF
UPRIGHT, SIDEWAYS = 1, range(5, 9)  # its values: as stored, and with width and height exchanged
CLIP_SIZE = 224
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@contextmanager
def open_image_file(path: Path) -> Iterator["Image.Image"]:
    """Open an image in one of `FORMATS`. Pixels are decoded on first access.

    Raises UsageError if it cannot be read or is larger than Pillow considers safe, and for errors
    of Pillow in the block.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), open_regular(path, MAX_FILE_BYTES) as file:
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats()) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UsageError(
            f"image {path} is too large; it may have at most {Image.MAX_IMAGE_PIXELS} pixels"
        ) from error
    except FileNotFoundError as error:
        raise UsageError(f"no image at {path}") from error
    except UnidentifiedImageError as error:
        raise UsageError(
            f"image {path} cannot be read: it is none of {', '.join(formats())}; give a PNG or JPEG"
        ) from error
    # Pillow raises all of these for damaged files: SyntaxError for PNG, RuntimeError for AVIF
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UsageError(f"image {path} cannot be read: {reason}; give a PNG or JPEG") from error


@cache
def formats() -> tuple[str, ...]:
    """Return the `FORMATS` that this build of Pillow supports."""
    from PIL import Image, features

    Image.init()
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise it writes to stderr
    return tuple(
        name
        for name in FORMATS
        if name in Image.OPEN and (name != "AVIF" or features.check("avif"))
    )


def open_image(
    path: Path,
    exif: bool = False,
    check: Callable[[int, int], object] = lambda width, height: None,
    report: Report | None = None,
) -> "Image.Image":
    """Read an image as RGB. Drops alpha, takes the first frame of an animation.

    EXIF orientation is ignored with a remark, as in the official code, unless `exif` asks to turn
    the image. `check` gets width and height before any pixel is decoded. Raises UsageError if the
    image cannot be read or is larger than Pillow considers safe.
    """
    from PIL import ImageOps

    with open_image_file(path) as image:
        if not exif:
            check(*image.size)  # a PNG is decoded to find its orientation
        orientation = UPRIGHT  # Pillow always turns a TIFF
        if image.format != "TIFF":
            orientation = image.getexif().get(ORIENTATION, UPRIGHT)
        if exif:
            check(*(image.size[::-1] if orientation in SIDEWAYS else image.size))
            ImageOps.exif_transpose(image, in_place=True)
        elif orientation in range(UPRIGHT + 1, SIDEWAYS.stop) and report is not None:
            report.remark(
                f"image {path} is marked as turned (EXIF orientation {orientation}) but is taken "
                "as it is stored; add --exif to turn it"
            )
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy it


def fit(
    image: "Image.Image", width: int, height: int, mode: Mode, resample: Resample
) -> np.ndarray:
    """Fit an RGB image to a canvas. Returns (Y, X, 3) float32 in [-1, 1], plus bicubic overshoot.

    "stretch" ignores the aspect ratio, "cover" crops to the center, "pad" adds black.
    Source: wan/image2video.py (bicubic stretch), wan/textimage2video.py (lanczos cover).
    """
    size = _resized(image, width, height, mode)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        raise UsageError(
            f"image of {image.width}x{image.height} is too narrow to {mode} {width}x{height}; "
            "crop it first"
        )
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    if mode == "pad":
        canvas = np.full((height, width, 3), -1.0, dtype=np.float32)
        canvas[-top : size[1] - top, -left : size[0] - left] = _resize(image, *size, resample)
        return canvas
    return _resize(image, *size, resample, (left, top, left + width, top + height))


def crop_last(image: "Image.Image", first: tuple[int, int]) -> np.ndarray:
    """Crop or pad a last image as the official code does if the first one has another size.

    Returns (Y, X, 3) float32 in [-1, 1]. It exchanges width and height, so a wide image is cropped
    to a tall part; what lies outside the image is gray. Source: wan/first_last_frame2video.py,
    WanFLF2V.generate, and torchvision's center_crop.
    """
    scale = max(first[0] / image.width, first[1] / image.height)
    height, width = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_RESIZED_PIXELS:
        raise UsageError(
            f"last image of {image.width}x{image.height} is too small or too narrow for a first "
            f"one of {first[0]}x{first[1]}; leave --fit official out"
        )
    cropped = np.zeros((height, width, 3), dtype=np.float32)
    inside, outside = [], []
    for size, wanted in ((image.height, height), (image.width, width)):
        # odd differences round to even where the image is cut, and down where it is padded
        start = round((size - wanted) / 2) if size > wanted else -((wanted - size) // 2)
        length = min(size, wanted)
        inside.append(slice(max(start, 0), max(start, 0) + length))
        outside.append(slice(max(-start, 0), max(-start, 0) + length))
    cropped[tuple(outside)] = signed(pixels_of(image)[tuple(inside)])
    return cropped


def clip_pixels(image: "Image.Image | np.ndarray") -> np.ndarray:
    """Resize the whole RGB image for CLIP: (224, 224, 3) float32, normalized by CLIP's mean and
    standard deviation.

    Source: wan/modules/clip.py, CLIPModel.visual.
    """
    pixels = image if isinstance(image, np.ndarray) else pixels_of(image)
    pixels = bicubic(pixels, CLIP_SIZE, CLIP_SIZE)
    return (pixels * 0.5 + 0.5 - CLIP_MEAN) / CLIP_STD


def _resized(image: "Image.Image", width: int, height: int, mode: Mode) -> tuple[int, int]:
    if mode == "stretch":
        return width, height
    scales = width / image.width, height / image.height
    scale = max(scales) if mode == "cover" else min(scales)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _resize(
    image: "Image.Image", width: int, height: int, resample: Resample, box: Box | None = None
) -> np.ndarray:
    """Resize, and return the part in `box`, by default all."""
    from PIL import Image

    if resample == "bicubic":
        return bicubic(pixels_of(image), height, width, box)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return signed(np.asarray(resized.crop(box) if box else resized))


def pixels_of(image: "Image.Image") -> np.ndarray:
    """Return the pixels of an RGB image (Y, X, 3) uint8, without Pillow's two copies at a time."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    step = max(1, PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def signed(pixels: np.ndarray) -> np.ndarray:
    """Map uint8 pixels to float32 in [-1, 1], with the rounding of torchvision's to_tensor."""
    return (pixels.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def bicubic(pixels: np.ndarray, height: int, width: int, box: Box | None = None) -> np.ndarray:
    """Resize (Y, X, 3) uint8 to float32 like torch's interpolate: a = -0.75, no antialiasing.

    Takes float32 too, which is in [-1, 1] already. Corners are not aligned, edge pixels are
    repeated, overshoot beyond [-1, 1] is kept. Computes only what lies in `box`.
    """
    left, top, right, bottom = box or (0, 0, width, height)
    rows, row_weights = (taps[:, top:bottom] for taps in _taps(pixels.shape[0], height))
    columns, column_weights = (taps[:, left:right] for taps in _taps(pixels.shape[1], width))
    out = np.zeros((bottom - top, right - left, 3), dtype=np.float32)
    step = max(1, PIXELS_AT_ONCE // pixels.shape[1])
    for some in (slice(start, start + step) for start in range(0, len(out), step)):
        for row, row_weight in zip(rows[:, some], row_weights[:, some], strict=True):
            band = pixels[row] if pixels.dtype == np.float32 else signed(pixels[row])
            across = sum(
                weight[None, :, None] * band[:, column]
                for column, weight in zip(columns, column_weights, strict=True)
            )
            out[some] += row_weight[:, None, None] * across
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
