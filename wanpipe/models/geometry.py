"""Sizes of videos: valid frame counts and sides, latent shapes, and canvases for an image.

Plain integers, without images or arrays. The order of arguments is width, height, frames.
"""

import math

from wanpipe.errors import UsageError

Triple = tuple[int, int, int]
MAX_FRAMES, MAX_SIDE = 10_001, 16_384  # frames, and pixels per side: more is a typing error
MAX_AREA = 2**24  # pixels of a frame: 4096x4096
WHOLE_MULTIPLE = 16  # of the sides that VACE's thinning of a whole video gives
TILE, OVERLAP = 256, 64  # pixels: side and overlap of the tiles of a tiled decode


def side_multiple(stride: Triple, patch: Triple) -> int:
    """Return the number that sides must be multiples of: VAE stride times patch, 16 or 32."""
    return stride[1] * patch[1]


def check_frames(num_frames: int) -> None:
    """Raise UsageError with the nearest valid counts unless `num_frames` is 4n+1."""
    if num_frames > MAX_FRAMES:
        raise UsageError(
            f"frames must be at most {MAX_FRAMES}, got {num_frames}; make a shorter video"
        )
    if num_frames < 1 or num_frames % 4 != 1:
        below = max(-3, (num_frames - 1) // 4 * 4 + 1)
        raise UsageError(f"frames must be 4n+1, got {num_frames}; use {_either(below, below + 4)}")


def check_size(width: int, height: int, multiple: int) -> None:
    """Raise UsageError with the nearest valid values unless both sides are valid."""
    for name, side in (("width", width), ("height", height)):
        if side > MAX_SIDE:
            raise UsageError(f"{name} must be at most {MAX_SIDE}, got {side}; make it smaller")
        if side < 1 or side % multiple:
            below = max(0, side // multiple * multiple)
            raise UsageError(
                f"{name} must be a multiple of {multiple}, got {side}; "
                f"use {_either(below, below + multiple)}"
            )
    if width * height > MAX_AREA:
        raise UsageError(
            f"a frame must have at most {MAX_AREA} pixels, got {width}x{height}; make it smaller"
        )


def _either(below: int, above: int) -> str:
    """Format two suggestions, without those below 1."""
    if below > 0:
        return f"{below} or {above}"
    return str(above)


def latent_shape(width: int, height: int, num_frames: int, stride: Triple) -> Triple:
    """Return the latent shape (F, H, W) of a video."""
    return (num_frames - 1) // stride[0] + 1, height // stride[1], width // stride[2]


def stretched_canvas(
    image_width: int, image_height: int, area: int, multiple: int
) -> tuple[int, int]:
    """Return width and height of `area` pixels at the image's aspect, rounded down to a multiple.

    The sides are floating-point square roots, as in the official code. A side that comes out just
    below a multiple is rounded down: an 832x480 image with an area of 832x480 gets 832x464. Raises
    UsageError if a side would be 0 or too long. Source: wan/image2video.py, `WanI2V.generate`.
    """
    aspect = image_height / image_width
    height = _floor(math.sqrt(area * aspect), multiple)
    width = _floor(math.sqrt(area / aspect), multiple)
    _check_canvas(width, height, (image_width, image_height), area)
    return width, height


def covered_canvas(
    image_width: int, image_height: int, area: int, multiple: int
) -> tuple[int, int]:
    """Return width and height within `area` pixels, in multiples, closest to the image's aspect.

    Rounds down the width first or the height first, whichever keeps the aspect better (on a tie,
    the height). Raises UsageError if a side would be 0 or too long.
    Source: wan/utils/utils.py, `best_output_size`.
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


def video_canvas(width: int, height: int, area: int, multiple: int) -> tuple[int, int]:
    """Return width and height within `area` pixels, in multiples, at the aspect of a video.

    A video is not enlarged: one of a valid size within the area keeps it. Raises UsageError if the
    video is smaller than a multiple, or too narrow.
    Source: wan/utils/vace_processor.py, `VaceVideoProcessor`.
    """
    tokens = min(area // multiple**2, (height // multiple) * (width // multiple))
    rows = round((tokens * height / width) ** 0.5)
    columns = int(tokens / rows) if rows else 0
    if min(rows, columns) < 1:
        raise UsageError(
            f"a video of {width}x{height} is too small or too narrow for sides that are multiples "
            f"of {multiple}; give --width and --height"
        )
    return columns * multiple, rows * multiple


def _distortion(size: tuple[int, int], aspect: float) -> float:
    ratio = size[0] / size[1]
    return max(aspect / ratio, ratio / aspect)


def _floor(side: float, multiple: int) -> int:
    return int(side // multiple) * multiple


def _check_canvas(width: int, height: int, image: tuple[int, int], area: int) -> None:
    if min(width, height) < 1 or max(width, height) > MAX_SIDE or width * height > MAX_AREA:
        raise UsageError(
            f"no canvas within {area} pixels has the aspect of a {image[0]}x{image[1]} image; "
            "give --width and --height"
        )
