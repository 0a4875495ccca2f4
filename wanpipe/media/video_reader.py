"""Reads videos that are not ours: a video, a folder of frames or a still image, as RGB frames.

Frames are (Y, X, 3) uint8, one in memory at a time. Videos are turned as their rotation tag says,
and pixels that are not square are made so, as players show them. Images are taken as stored.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.media import decoder
from wanpipe.media.ffmpeg import check_file
from wanpipe.media.image import MAX_FILE_BYTES, open_image, open_image_file, pixels_of
from wanpipe.media.video_index import VideoIndex
from wanpipe.runtime.report import Report

SUFFIXES = {".png", ".jpg", ".jpeg"}
ANIMATED = {"WEBP", "PNG", "AVIF"}  # formats of images that may hold a video
MAX_IMAGES = 1 << 17  # in a folder


def probe(
    path: Path,
    report: Report,
    *,
    fps: float = 16.0,
    seconds: float | None = None,
    frames: int | None = None,
) -> VideoIndex:
    """Learn the size of a video and when its frames are on screen; keeps no pixels.

    `fps` is the rate of a folder's frames, and of a still image, which is one frame. Only the first
    `seconds` or `frames` are looked at. Raises UsageError for what is no video, WanpipeError for
    one that is damaged or cut short, with the number of frames that could be read.
    """
    seconds = math.inf if seconds is None else seconds
    if path.is_dir():
        images = _images(path)[: max(1, math.ceil(min(seconds * fps, MAX_IMAGES)))][:frames]
        size = _one_size(images)
    elif _is_still(path):
        images = [path]
        size = _size(path)
    else:
        return decoder.scan(path, report, seconds, frames).index
    starts = np.arange(len(images) + 1) / fps
    return VideoIndex(width=size[0], height=size[1], times=starts[:-1], ends=starts[1:])


def read_frames(path: Path, indices: Sequence[int], report: Report) -> Iterator[np.ndarray]:
    """Read the frames at `indices`, which rise and may repeat: read-only (Y, X, 3) uint8 arrays.

    Raises as `probe`. ffmpeg ends with the iterator, also where it is dropped early.
    """
    assert all(one <= two for one, two in itertools.pairwise(indices)), indices
    if not path.is_dir() and not _is_still(path):
        yield from decoder.frames_of(path, indices, report)
        return
    images = _images(path) if path.is_dir() else [path]
    last, frame = -1, np.empty(0, np.uint8)
    with report.task(f"frames of {path.name}", len(indices)) as task:
        for number in map(int, indices):
            if number >= len(images):
                raise WanpipeError(f"{path} has {len(images)} frames, none with number {number}")
            if number != last:
                last, frame = number, pixels_of(open_image(images[number]))
                frame.flags.writeable = False
            yield frame
            task.advance()


def _images(folder: Path) -> list[Path]:
    """Return the PNG and JPEG files of a folder in natural order: frame2 before frame10."""
    try:
        found = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
    except OSError as error:
        raise UsageError(f"folder {folder} cannot be read: {error.strerror}") from error
    if not found:
        raise UsageError(f"folder {folder} has no frames; give one with PNG or JPEG files")
    if len(found) > MAX_IMAGES:
        raise UsageError(f"folder {folder} has more than {MAX_IMAGES} images; give fewer")
    return sorted(found, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts names by the numbers in them."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    pairs = [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts]
    return pairs, path.name


def _one_size(images: Sequence[Path]) -> tuple[int, int]:
    """Return the size of all images. Raises UsageError for the first of another size."""
    size = _size(images[0])
    for path in images:
        if (other := _size(path)) != size:
            raise UsageError(
                f"frames of a folder must have one size: {images[0].name} has "
                f"{size[0]}x{size[1]} and {path.name} {other[0]}x{other[1]} in {path.parent}"
            )
    return size


def _size(path: Path) -> tuple[int, int]:
    with open_image_file(path) as image:
        return image.size


def _is_still(path: Path) -> bool:
    """Whether a file is an image that is no animation. Raises UsageError unless it is a file, or
    for an image that is damaged or too large.
    """
    from PIL import UnidentifiedImageError

    check_file(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        return False
    try:
        with open_image_file(path) as image:
            if image.format == "GIF":  # one that is cut short has one frame too
                return False
            return image.format not in ANIMATED or not getattr(image, "is_animated", False)
    except UsageError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            return False
        raise
