"""Reads videos: files of any format, folders of PNG or JPEG frames, and still images.

First `probe` tells when each frame is shown, then `read_frames` reads those that are chosen. Holds
one frame at a time, however long the video is.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wanpipe.errors import UsageError
from wanpipe.media.ffmpeg_decode import list_frames, read_some
from wanpipe.media.image import open_image, open_image_file, pixels_of
from wanpipe.media.video_index import VideoIndex
from wanpipe.runtime.report import Report

FRAMES = {".png", ".jpg", ".jpeg"}  # files of a folder
STILLS = FRAMES | {".webp", ".bmp", ".tif", ".tiff"}  # one frame each


def probe(path: Path, report: Report, *, fps: float, seconds: float | None = None) -> VideoIndex:
    """Return the size of a video, and when each of its frames is shown, or of its first `seconds`.

    The frames of a folder come at `fps`. Raises UsageError for what is no video, has no frames, is
    cut short, or has frames of several sizes.
    """
    if path.is_dir() or path.suffix.lower() in STILLS:
        files = frame_files(path)
        width, height = common_size(files)
        starts = np.arange(len(files) + 1) / fps
        return VideoIndex(width=width, height=height, times=starts[:-1], ends=starts[1:])
    return list_frames(path, seconds, report)


def read_frames(path: Path, indices: np.ndarray) -> Iterator[np.ndarray]:
    """Yield frames (Y, X, 3) uint8 by their rising numbers, which may repeat."""
    if not (path.is_dir() or path.suffix.lower() in STILLS):
        yield from read_some(path, indices)
        return
    files = frame_files(path)
    for index in indices:
        yield pixels_of(open_image(files[index]))


def frame_files(path: Path) -> list[Path]:
    """Return the images of a folder in the order of their numbers, or a still image alone.

    Hidden files are left out. Raises UsageError for a folder without images.
    """
    if not path.is_dir():
        return [path]
    files = [one for one in path.iterdir() if one.suffix.lower() in FRAMES and one.name[0] != "."]
    if not files:
        raise UsageError(f"folder {path} has no PNG or JPEG images; give a folder of frames")
    return sorted(files, key=natural)


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Return a sort key that puts frame2 before frame10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def common_size(files: list[Path]) -> tuple[int, int]:
    """Return the width and height of all images. Raises UsageError for the first other one."""
    size = None
    for file in files:
        with open_image_file(file) as image:
            if size is not None and image.size != size:
                raise UsageError(
                    f"frames must have one size, but {file} has {image.width}x{image.height} and "
                    f"{files[0].name} {size[0]}x{size[1]}; resize them first"
                )
            size = image.size
    assert size is not None
    return size
