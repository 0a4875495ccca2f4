"""Writes and reads videos: .mp4, .webm and .gif with ffmpeg, or a folder of PNG frames.

Frames are (T, Y, X, 3) uint8 RGB. A video is written whole or not at all. Knows no entries.
No stage calls `read_video`: it is for users who compare videos.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.media import ffmpeg
from wanpipe.media.ffmpeg import FfmpegError
from wanpipe.media.frames import check_replaceable, load_frames, save_frames
from wanpipe.media.names import MAX_NAME_BYTES
from wanpipe.runtime import output
from wanpipe.runtime.output import follow_links, replace_output

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FRAMES = "png"
MIN_FPS, MAX_FPS = 0.01, 240  # frames per second
MAX_GIF_FPS = 50  # viewers slow down frames that are shorter than two hundredths of a second


def video_format(path: str | Path) -> str:
    """Return the format of a video at `path`: "mp4", "webm", "gif", or "png" for a frames folder.

    A path means a folder if it ends in "/" or .png, has no suffix, or is an existing folder. Call
    this before any work: it raises UsageError for another suffix, a missing parent folder, what is
    no file, or a folder with other files than frames of wanpipe.
    """
    target = Path(path)
    if len(os.fsencode(target.name)) > MAX_NAME_BYTES:
        raise UsageError(
            f"a video name may have at most {MAX_NAME_BYTES} bytes, got {target.name[:24]}…"
        )
    place = follow_links(target)
    for parent in (target.parent, place.parent):
        if not parent.is_dir():
            raise UsageError(f"no folder {parent} for the video {target.name}; create it first")
    if place.is_dir():
        if Path.cwd().is_relative_to(place):
            raise UsageError(f"{path} is the current folder or holds it; give another name")
        check_replaceable(target)
        return FRAMES
    if place.exists() and not place.is_file():
        raise UsageError(f"{path} is no file, so no video can replace it; give another name")
    kind = named_format(path)
    if kind == FRAMES and place.exists():
        raise UsageError(f"frames are written to a folder, but {path} is a file; give another name")
    return kind


def named_format(path: str | Path) -> str:
    """Return the format that the name of a video asks for, as `video_format` does where nothing is
    at `path`. Raises UsageError for another suffix.
    """
    target = Path(path)
    suffix = target.suffix.lower().removeprefix(".")
    if str(path).endswith(("/", os.sep)) or suffix in ("", FRAMES):
        return FRAMES
    if suffix not in ffmpeg.ENCODERS:
        raise UsageError(
            f"a video must end in .mp4, .webm, .gif or .png (a folder of frames), got {target.name}"
        )
    return suffix


def check_rate(kind: str, fps: float) -> None:
    """Raise UsageError for frames per second that no video of this format can have."""
    if not MIN_FPS < fps <= MAX_FPS:
        raise UsageError(
            f"fps must be above {MIN_FPS:g} and at most {MAX_FPS}, got {fps:g}; use 16 or 24"
        )
    if kind == "gif" and fps > MAX_GIF_FPS:
        raise UsageError(
            f"fps of a .gif must be at most {MAX_GIF_FPS}, because viewers slow down faster ones, "
            f"got {fps:g}; use --fps {MAX_GIF_FPS} or an .mp4"
        )


def check_writable(path: Path) -> None:
    """Check that a video can be written to `path`, without leaving files.

    Raises WanpipeError if it cannot.
    """
    if video_format(path) != FRAMES:
        ffmpeg.program()
    with _reported(path):
        output.check_writable(path)


def check_keeps(path: Path, inputs: Iterable[Path]) -> None:
    """Raise UsageError for a video at `path` that would replace an input that it is made from."""
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(
                f"output {path} would replace the input of the same name; give another --output"
            )


def write_video(
    path: str | Path,
    slices: Iterable["np.ndarray"],
    fps: float,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write slices of frames, each (T, Y, X, 3) uint8, as they arrive; return `path`.

    `metadata` may have "title" and "comment" (a .gif keeps only the comment). An existing file is
    replaced at the end. Raises WanpipeError with ffmpeg's message if ffmpeg fails.
    """
    kind, target = video_format(path), Path(path)
    check_rate(kind, fps)
    metadata = metadata or {}
    with _reported(target), replace_output(target, lambda: video_format(path)) as draft:
        if kind == FRAMES:
            save_frames(draft, slices, {"fps": f"{fps:g}", **metadata})
        else:
            try:
                ffmpeg.encode(draft, kind, slices, fps, metadata)
            except FfmpegError as error:
                raise WanpipeError(f"video cannot be written to {target}: {error}") from error
    return Path(path)


def read_video(path: str | Path) -> tuple["np.ndarray", float, dict[str, str]]:
    """Read a whole video: frames (T, Y, X, 3) uint8, frames per second, metadata."""
    if Path(path).is_dir():
        return load_frames(Path(path))
    return *ffmpeg.decode(Path(path)), ffmpeg.read_metadata(Path(path))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a video, such as "title" and "comment", without decoding frames.

    Raises UsageError or WanpipeError if it cannot be read, or is larger than wanpipe writes.
    """
    if Path(path).is_dir():
        return load_frames(Path(path), first=True)[2]
    return ffmpeg.read_metadata(Path(path))


def contact_sheet(
    rows: Sequence[tuple[str, "np.ndarray"]], columns: int = 5, width: int = 240
) -> "Image.Image":
    """Draw each video, (T, Y, X, 3) uint8, as a labeled row of evenly spaced frames.

    `width` is the width of one frame in pixels.
    """
    from PIL import Image, ImageDraw

    gap, caption = 8, 20
    heights = [max(1, round(width * frames.shape[1] / frames.shape[2])) for _, frames in rows]
    across = gap + columns * (width + gap)
    down = gap + sum(caption + height + gap for height in heights)
    sheet = Image.new("RGB", (across, down), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    top = gap
    for (label, frames), height in zip(rows, heights, strict=True):
        draw.text((gap, top), label, fill=(220, 220, 220))
        for column, index in enumerate(_evenly(len(frames), columns)):
            frame = Image.fromarray(frames[index]).resize((width, height))
            sheet.paste(frame, (gap + column * (width + gap), top + caption))
        top += caption + height + gap
    return sheet


def _evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` evenly spaced indices below `count`, with the first and the last."""
    wanted = min(count, wanted)
    return [round(index * (count - 1) / max(1, wanted - 1)) for index in range(wanted)]


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WanpipeError(f"video {path} cannot be written: {error.strerror or error}") from error
