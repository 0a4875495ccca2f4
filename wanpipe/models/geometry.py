"""Which sizes a film can have: the rules of frames and sides, latent shapes, canvases for an image.

Plain integers: knows neither images nor tensors. The order of arguments is width, height, frames.
"""

import math

from wanpipe.errors import UsageError

Triple = tuple[int, int, int]
LONGEST, LARGEST = 10_001, 16_384  # frames, and pixels of a side: beyond it is a typing error
TILE, OVERLAP = 256, 64  # pixels: side of the tiles of a spatial decode, and how far they overlap


def side_multiple(stride: Triple, patch: Triple) -> int:
    """Of what width and height must be multiples: VAE stride times patch, 16 or 32 pixels."""
    return stride[1] * patch[1]


def check_frames(num_frames: int) -> None:
    """Raise UsageError that names the nearest right counts unless `num_frames` is 4n+1."""
    if num_frames > LONGEST:
        raise UsageError(f"frames must be at most {LONGEST}, got {num_frames}; make shorter films")
    if num_frames < 1 or num_frames % 4 != 1:
        below = max(-3, (num_frames - 1) // 4 * 4 + 1)
        raise UsageError(f"frames must be 4n+1, got {num_frames}; use {_either(below, below + 4)}")


def check_size(width: int, height: int, multiple: int) -> None:
    """Raise UsageError that names the nearest right values unless both sides fit."""
    for name, side in (("width", width), ("height", height)):
        if side > LARGEST:
            raise UsageError(f"{name} must be at most {LARGEST}, got {side}; make it smaller")
        if side < 1 or side % multiple:
            below = max(0, side // multiple * multiple)
            raise UsageError(
                f"{name} must be a multiple of {multiple}, got {side}; "
                f"use {_either(below, below + multiple)}"
            )


def _either(below: int, above: int) -> str:
    """The choice between two neighbours, of which only positive ones count."""
    if below > 0:
        return f"{below} or {above}"
    return str(above)


def latent_shape(width: int, height: int, num_frames: int, stride: Triple) -> Triple:
    """Latent frames, rows and columns (F, H, W) of a film."""
    return (num_frames - 1) // stride[0] + 1, height // stride[1], width // stride[2]


def stretched_canvas(
    image_width: int, image_height: int, area: int, multiple: int
) -> tuple[int, int]:
    """Width and height of `area` pixels at the image's aspect, each rounded down to a multiple.

    Raises UsageError where a side would vanish or be too long. Source: wan/image2video.py,
    WanI2V.generate.
    """
    aspect = image_height / image_width
    height = _floor(math.sqrt(area * aspect), multiple)
    width = _floor(math.sqrt(area / aspect), multiple)
    _check_canvas(width, height, (image_width, image_height), area)
    return width, height


def covered_canvas(
    image_width: int, image_height: int, area: int, multiple: int
) -> tuple[int, int]:
    """Width and height of at most `area` pixels, in multiples, nearest to the image's aspect.

    Rounds down the width first or the height first, and takes what keeps the aspect better (the
    latter where both do). Raises UsageError where a side would vanish or be too long.
    Source: wan/utils/utils.py, best_output_size.
    """
    aspect = image_width / image_height
    ideal_width = (area * aspect) ** 0.5
    width = _floor(ideal_width, multiple)
    height = _floor(area / ideal_width, multiple)
    _check_canvas(width, height, (image_width, image_height), area)
    wide = (width, _floor(area / width, multiple))
    high = (_floor(area / height, multiple), height)
    canvas = wide if _distortion(wide, aspect) < _distortion(high, aspect) else high
    _check_canvas(*canvas, (image_width, image_height), area)
    return canvas


def _distortion(size: tuple[int, int], aspect: float) -> float:
    ratio = size[0] / size[1]
    return max(aspect / ratio, ratio / aspect)


def _floor(side: float, multiple: int) -> int:
    return int(side // multiple) * multiple


def _check_canvas(width: int, height: int, image: tuple[int, int], area: int) -> None:
    if min(width, height) < 1 or max(width, height) > LARGEST:
        raise UsageError(
            f"image of {image[0]}x{image[1]} has no canvas of its aspect within {area} pixels; "
            "give --width and --height"
        )
