"""Decodes videos with ffmpeg: lists when each frame is shown, and reads some of the frames.

A video may come from anywhere, so ffmpeg opens no other file, no address and no playlist.
"""

import math
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from wanpipe.errors import UsageError
from wanpipe.media.ffmpeg import (
    OWN_GROUP,
    POLL_SECONDS,
    check_file,
    last_line,
    program,
    read_log,
)
from wanpipe.media.video_index import VideoIndex, seconds_of
from wanpipe.runtime import interrupt
from wanpipe.runtime.report import Report

# containers of films; none of them names other files
FORMATS = (
    "mov,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,ivf,yuv4mpegpipe,h264,hevc,"
    "obu,m4v,apng,webp_anim,nut,wtv,rm,vob,dv,gxf,vc1,mjpeg"
)
MAX_PIXELS = 1 << 26  # of a frame: 8K has half as many
LIMITS = (
    f"-protocol_whitelist file -format_whitelist {FORMATS} -max_alloc 536870912 "
    f"-max_pixels {MAX_PIXELS}"
)
MAX_FRAMES = 2_000_000  # nine hours at 60 per second
MAX_SIDE = 16_384  # pixels
MAX_TERMS = 2_000  # of a filter, which is one argument; more frames are chosen here
# what ffmpeg says of a file that is cut short or damaged; it goes on with what is left
DAMAGE = re.compile(
    r"ended prematurely|partial file|corrupt|damaged|[Dd]ecoding error|decode failed|"
    r"Error splitting|error while decoding|[Tt]runcated|Invalid data"
)
MAX_LINE_BYTES = 1 << 10
SQUARE = "scale=round(iw*sar):ih"  # makes pixels square; changes nothing where they are
FRAME_LINE = re.compile(rb"0, *-?\d+, *(-?\d{1,18}), *(-?\d{1,18}),")  # start and duration
PPM = re.compile(rb"P6\n(\d{1,5}) (\d{1,5})\n255\n")


def list_frames(path: Path, seconds: float | None, report: Report) -> VideoIndex:
    """List the frames of a video, or of its first `seconds`, without keeping their pixels.

    Raises UsageError for a file that is no video, has no frames, or is cut short.
    """
    passthrough = ["-map", "0:v:0", "-fps_mode", "passthrough", "-enc_time_base", "demux"]
    limit = [] if seconds is None else ["-t", f"{seconds:.6f}"]
    frames = [*passthrough, *limit, "-c:v", "wrapped_avframe", "-f", "framecrc", "-"]
    total = length(path)
    total = total if seconds is None else min(total, math.ceil(seconds))
    header: dict[str, str] = {}
    starts: list[int] = []
    last = 0
    with running(path, frames) as process, report.task(f"read {path.name}", total) as task:
        for line in process.lines():
            if line.startswith(b"#"):
                name, _, value = line[1:].decode(errors="replace").partition(":")
                header[name.strip()] = value.strip()
                continue
            times = FRAME_LINE.match(line)
            if times is None:
                raise UsageError(f"{path} has frames without a time; convert it to .mp4 first")
            starts.append(int(times[1]))
            last = int(times[2])
            if len(starts) > MAX_FRAMES:
                raise UsageError(f"{path} has more than {MAX_FRAMES} frames; cut it first")
            done = int((starts[-1] - starts[0]) * Fraction(header.get("tb 0", "1")))
            if task.done < done <= total:
                task.advance(done - task.done)
            interrupt.check()
        process.finish(len(starts))
        if task.done < total:
            task.advance(total - task.done)
    return index_of(path, header, np.array(starts, dtype=np.int64), last)


def length(path: Path) -> int:
    """Return the seconds of a video as its header says, at least 1. Only progress needs them."""
    with running(path, ["-t", "0", "-f", "null", "-"], level="info") as process:
        for _ in process.lines():
            pass
        found = re.search(r"Duration: (\d+):(\d+):(\d+)", process.log())
    hours, minutes, seconds = map(int, found.groups()) if found else (0, 0, 1)
    return max(1, min(hours, 10_000) * 3600 + minutes * 60 + seconds)


def index_of(path: Path, header: dict[str, str], starts: np.ndarray, last: int) -> VideoIndex:
    """Return the index of frames that start at these ticks; the last one takes `last` ticks."""
    size = re.fullmatch(r"(\d+)x(\d+)", header.get("dimensions 0", ""))
    if not len(starts) or size is None:
        raise UsageError(f"{path} has no frames; give a video")
    width, height = int(size[1]), int(size[2])
    aspect = re.fullmatch(r"(\d+)/(\d+)", header.get("sar 0", ""))
    if aspect and int(aspect[1]) and int(aspect[2]):
        width = round(width * int(aspect[1]) / int(aspect[2]))
    if not 1 <= max(width, height) <= MAX_SIDE or min(width, height) < 1:
        raise UsageError(
            f"{path} has frames of {width}x{height}, but a side may have 1 to {MAX_SIDE} pixels; "
            "resize it first"
        )
    tick = Fraction(header["tb 0"])
    starts = np.maximum.accumulate(starts - starts[0])
    last = last if last > 0 else max(1, int(np.diff(starts).mean())) if len(starts) > 1 else 1
    times = seconds_of(starts, tick)
    usual = float(times[-1]) / (len(times) - 1) if len(times) > 1 else 0.0
    # of an even rate, the last frame takes as long as the others
    even = len(times) > 2 and np.allclose(np.diff(times), usual, rtol=1e-6)
    ends = np.append(times[1:], times[-1] + (usual if even else float(last * tick)))
    return VideoIndex(width=width, height=height, times=times, ends=ends)


def read_some(path: Path, indices: np.ndarray) -> Iterator[np.ndarray]:
    """Yield frames (Y, X, 3) uint8 by their rising numbers, each as often as its number occurs.

    Holds one frame at a time. Raises UsageError if the video has fewer frames, or is damaged.
    """
    wanted = np.unique(indices)
    ranges = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
    chosen = len(ranges) <= MAX_TERMS
    terms = [f"between(n\\,{part[0]}\\,{part[-1]})" for part in ranges] if chosen else ["1"]
    filters = f"select={'+'.join(terms)},{SQUARE}"
    pictures = ["-map", "0:v:0", "-fps_mode", "passthrough", "-vf", filters]
    pictures += ["-frames:v", str(len(wanted) if chosen else int(wanted[-1]) + 1)]
    pictures += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    repeats = iter(np.unique(indices, return_counts=True)[1])
    numbers = iter(wanted if chosen else range(int(wanted[-1]) + 1))
    found, rest = 0, set(wanted.tolist())
    with running(path, pictures) as process:
        for number, frame in zip(numbers, process.pictures(), strict=False):
            if int(number) in rest:
                for _ in range(next(repeats)):
                    yield frame
                found += 1
            interrupt.check()
        if found < len(wanted):
            process.finish(found)
            raise UsageError(f"{path} changed while it was read; try again")


class Decoder:
    """A running ffmpeg that decodes one file, and its log."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
        self.path, self.process, self._log = path, process, log
        assert process.stdout is not None
        self.output: IO[bytes] = process.stdout

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that ffmpeg prints."""
        yield from iter(lambda: self.output.readline(MAX_LINE_BYTES), b"")

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield the pictures (Y, X, 3) uint8 that ffmpeg prints as PPM."""
        while header := b"".join(self.output.readline(MAX_LINE_BYTES) for _ in range(3)):
            size = PPM.fullmatch(header)
            if size is None or max(map(int, size.groups())) > MAX_SIDE:
                break
            width, height = map(int, size.groups())
            data = self.output.read(width * height * 3)
            if len(data) < width * height * 3:
                break
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def finish(self, frames: int) -> None:
        """Wait for the end. Raises UsageError if ffmpeg failed, or found the file cut short."""
        while True:
            try:
                code = self.process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                interrupt.check()
        log = self.log()
        if frames and (code or DAMAGE.search(log)):
            raise UsageError(
                f"{self.path} is damaged or cut short: only {frames} frames can be read "
                f"({last_line(log)}); give the whole file"
            )
        if code:
            raise UsageError(
                f"{self.path} cannot be read as a video: {last_line(log)}; give a video file"
            )

    def log(self) -> str:
        """Return the end of what ffmpeg says."""
        return read_log(self._log)


@contextmanager
def running(path: Path, arguments: Sequence[str], level: str = "warning") -> Iterator[Decoder]:
    """Run ffmpeg on a file; it never outlives the block. Raises UsageError if there is no file."""
    check_file(path)
    command = [program(), "-hide_banner", "-nostats", "-loglevel", level, *LIMITS.split()]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "-i", f"file:{path}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=OWN_GROUP,
        )
        try:
            yield Decoder(path, process, log)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
