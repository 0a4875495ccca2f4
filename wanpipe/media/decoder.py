"""Decodes videos with ffmpeg: once to learn when frames are on screen, once for chosen frames.

ffmpeg opens no other file or address. One frame is in memory here at a time. Knows no folders.
"""

import math
import os
import re
import selectors
import subprocess
import tempfile
import time
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from wanpipe.errors import WanpipeError
from wanpipe.media import decoder_log
from wanpipe.media.ffmpeg import OWN_GROUP, check_file, program
from wanpipe.media.video_index import VideoIndex, seconds_of
from wanpipe.runtime import interrupt
from wanpipe.runtime.report import Report

# formats that hold their frames in one file; no playlists, image sequences, devices or scripts
FORMATS = (
    "mov,matroska,webm,avi,gif,apng,webp_anim,jpegxl_anim,mpegts,mpeg,mpegvideo,flv,ogg,asf,"
    "yuv4mpegpipe,mxf,nut,ivf,obu,av1,h264,hevc,vvc,m4v,h263,mjpeg,dv,rm,wtv,vc1,dirac,gxf,nuv,"
    "dnxhd,cavsvideo,flic,smk,bink"
)
MAX_PIXELS = 1 << 25  # of a frame: 8K has 33.2 million
MAX_FRAMES = 1 << 20  # twelve hours at 24 frames per second
MAX_SECONDS = 1e6  # a start later than this is damage
MAX_TOTAL_PIXELS = 1 << 42  # four hours of 4K at 30 frames per second
MAX_THREADS = 8  # each keeps a frame
MAX_LOG_BYTES = 1 << 24  # of ffmpeg's messages
STALL_SECONDS = 30.0  # without a new frame
POLL_SECONDS = 0.1  # between two checks for a signal
REPORT_SECONDS = 0.2  # between two reports of progress
MAX_SPANS = 1000  # of chosen frames, to bound the length of ffmpeg's command
SQUARE = 0.02  # pixels closer to square than this are; encoders round an aspect ratio
INPUT = f"-protocol_whitelist file -format_whitelist {FORMATS} -max_alloc 268435456"
STREAM = "-map 0:V:0 -fps_mode passthrough"  # V: no cover picture of a song
# frames stay in ffmpeg: the checksum is of its own small record of each
TIMES = f"{STREAM} -c:v wrapped_avframe -enc_time_base demux -flush_packets 1 -f framecrc -"
DURATION_SLACK = 0.5  # seconds by which sound may outlast the frames without a remark


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one decoding learned. `stored` is width and height before pixels are made square."""

    index: VideoIndex
    stored: tuple[int, int]


class _Process:
    """A running ffmpeg: its stdout, and the file of its messages."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: IO[bytes], path: Path) -> None:
        assert process.stdout is not None
        self.process, self.log, self.path = process, log, path
        self.pipe = process.stdout.fileno()
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.pipe, selectors.EVENT_READ)

    def wait(self) -> None:
        """Wait until stdout has data or ends. Raises Interrupted, or WanpipeError for a video that
        takes too long or makes ffmpeg print too much.
        """
        started = time.monotonic()
        interrupt.check()
        while not self.selector.select(POLL_SECONDS):
            interrupt.check()
            if time.monotonic() - started > STALL_SECONDS:
                raise WanpipeError(
                    f"{self.path} cannot be read as a video: "
                    f"no frame came within {STALL_SECONDS:g} s"
                )
        if os.fstat(self.log.fileno()).st_size > MAX_LOG_BYTES:
            raise WanpipeError(f"{self.path} cannot be read as a video: it is full of errors")

    def lines(self) -> Iterator[str]:
        """Yield the lines of stdout as they come."""
        rest = b""
        while True:
            self.wait()
            data = os.read(self.pipe, 1 << 16)
            *whole, rest = (rest + data).split(b"\n")
            yield from (line.decode("ascii", "replace") for line in whole)
            if not data:
                return

    def fill(self, frame: np.ndarray) -> bool:
        """Read one frame from stdout; return False where it ends before."""
        view, done = frame.data.cast("B"), 0
        while done < len(view):
            self.wait()
            got = os.readv(self.pipe, [view[done:]])
            if not got:
                return False
            done += got
        return True

    def text(self) -> str:
        """Return all that ffmpeg has said."""
        return os.pread(self.log.fileno(), MAX_LOG_BYTES, 0).decode(errors="replace")

    def ended(self) -> int:
        """Wait for ffmpeg, whose stdout has ended, and return its exit code."""
        try:
            return self.process.wait(STALL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise WanpipeError(f"{self.path} cannot be read as a video: ffmpeg hangs") from error


@contextmanager
def _running(path: Path, arguments: Sequence[str]) -> Iterator[_Process]:
    """Run ffmpeg on a video; it never outlives the block."""
    check_file(path)
    threads = str(min(os.cpu_count() or 1, MAX_THREADS))
    command = [program(), "-hide_banner", "-nostdin", "-nostats"]
    command += ["-loglevel", "repeat+level+info", "-threads", threads]
    command += ["-max_pixels", str(MAX_PIXELS), *INPUT.split(), "-i", f"file:{path}", *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=OWN_GROUP,  # Ctrl-C is for us, and we end ffmpeg
        )
        try:
            with process.stdout or tempfile.TemporaryFile():
                running = _Process(process, log, path)
                with running.selector:
                    yield running
        finally:
            process.kill()
            process.wait()


def scan(path: Path, report: Report, seconds: float = math.inf, frames: int | None = None) -> Scan:
    """Decode a video, or only its first seconds or frames, and keep no pixels.

    Raises UsageError or WanpipeError where it is no video, holds no frame, is damaged or cut short.
    """
    most = MAX_FRAMES + 1 if frames is None else frames
    with _running(path, TIMES.split()) as running:
        facts: dict[str, str] = {}
        starts, lengths = array("q"), array("q")
        rows = _rows(running, facts, _Progress(running, report, seconds, most))
        stopped = False
        for start, length in rows:
            tick = Fraction(facts["tb"])
            starts.append(max(start, starts[-1]) if starts else start)
            lengths.append(length)
            elapsed = float((starts[-1] - starts[0]) * tick)
            _check_limits(path, facts, len(starts), elapsed)
            # the frame after the last is known too: it says when that ends
            if elapsed >= seconds or len(starts) > most:
                stopped = True
                break
        rows.close()
        code = 0 if stopped else running.ended()
        said = running.text()
        if not starts or not stopped:
            _check_whole(path, said, len(starts), code)
        elif damage := decoder_log.damage(said):
            report.remark(f"video {path} is damaged, maybe after the part that is read: {damage}")
    index = _index(facts, starts, lengths, stopped)
    if not stopped and not _has_end(path):
        report.remark(f"video {path} has no mark of its end; it may be cut short")
    declared = decoder_log.declared(said)
    if not stopped and declared > float(index.ends[-1]) + DURATION_SLACK:
        report.remark(
            f"video {path} says that it lasts {declared:.2f} s, but its frames end at "
            f"{index.ends[-1]:.2f} s; it may be cut short"
        )
    width, height = map(int, facts["dimensions"].split("x"))
    return Scan(index=index, stored=(width, height))


def frames_of(path: Path, indices: Sequence[int], report: Report) -> Iterator[np.ndarray]:
    """Decode the frames at rising `indices`, (Y, X, 3) uint8, as they come.

    A repeated index gives the same read-only array again. Raises WanpipeError where the video has
    fewer frames.
    """
    if not len(indices):
        return
    found = scan(path, Report(), frames=1)
    width, height = found.index.width, found.index.height
    filters = f"select='{_between(spans := _spans(indices))}'"
    if (width, height) != found.stored:
        filters += f",scale={width}:{height},setsar=1"
    total = sum(last - first + 1 for first, last in spans)
    arguments = [*STREAM.split(), "-vf", filters, "-frames:v", str(total)]
    arguments += ["-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    wanted = [int(index) for index in indices]
    with (
        report.task(f"frames of {path.name}", len(wanted)) as task,
        _running(path, arguments) as running,
    ):
        at = 0
        for number in (number for first, last in spans for number in range(first, last + 1)):
            frame = np.empty((height, width, 3), np.uint8)
            if not running.fill(frame):
                raise WanpipeError(
                    f"video {path} has no frame {number}: "
                    f"{decoder_log.damage(running.text()) or 'it ends before'}"
                )
            frame.flags.writeable = False
            while at < len(wanted) and wanted[at] == number:
                yield frame
                at += 1
                task.advance()


class _Progress:
    """Reports decoded frames against an estimate from the video's header."""

    def __init__(self, running: _Process, report: Report, seconds: float, most: int) -> None:
        self.running, self.report, self.seconds, self.most = running, report, seconds, most

    def total(self) -> int:
        """Estimate the number of frames from what ffmpeg has said, at least 1."""
        said = self.running.text()
        fps = decoder_log.rate(said)
        return max(1, min(round(min(decoder_log.declared(said), self.seconds) * fps), self.most))


def _rows(
    running: _Process, facts: dict[str, str], progress: _Progress
) -> Generator[tuple[int, int], None, None]:
    """Yield start and length of every frame in ticks; before the first, fill `facts` from the
    header: tb, dimensions, sar.
    """
    lines = running.lines()
    first = ""
    for line in lines:
        if not line.startswith("#"):
            first = line
            break
        if found := re.match(r"#(tb|dimensions|sar) 0: (\S+)", line):
            facts[found[1]] = found[2]
    if not first:
        return
    yield _row(first)
    total = progress.total()
    with progress.report.task(f"scan {running.path.name}", total) as task:
        shown, counted = time.monotonic(), 1
        for line in lines:
            if line:
                yield _row(line)
                counted += 1
            if time.monotonic() - shown > REPORT_SECONDS and min(counted, total - 1) > task.done:
                task.advance(min(counted, total - 1) - task.done)
                shown = time.monotonic()
        task.advance(total - task.done)


def _row(line: str) -> tuple[int, int]:
    """Read start and length out of a line: stream, dts, pts, duration, bytes, checksum."""
    values = line.split(",")
    return int(values[2]), int(values[3])


def _index(
    facts: dict[str, str], starts: "array[int]", lengths: "array[int]", more: bool
) -> VideoIndex:
    """Put together what was read; with `more`, the last start only ends the frame before it."""
    tick = Fraction(facts["tb"])
    ticks = np.frombuffer(starts, np.int64) - starts[0]
    times = seconds_of(ticks, tick)
    if more and len(times) > 1:
        times, ends = times[:-1], times[1:]
    else:
        ends = np.append(times[1:], _last_end(times, ticks, lengths[-1], tick))
    width, height = map(int, facts["dimensions"].split("x"))
    width, height = _square(width, height, facts.get("sar", "0/1"))
    return VideoIndex(width=width, height=height, times=times, ends=ends)


def _last_end(times: np.ndarray, ticks: np.ndarray, length: int, tick: Fraction) -> float:
    """Return the end of the last frame in seconds; it may not say how long it lasts."""
    step = int(ticks[-1] - ticks[-2]) if len(ticks) > 1 else 0
    length = length if length > 0 else step
    exact = float((int(ticks[-1]) + length) * tick)
    if not length:
        return exact + 1.0
    made_even = times[-1] != float(int(ticks[-1]) * tick) or abs(length - step) == 1
    if made_even and abs(length - step) <= 1:
        return float(times[-1]) * len(times) / (len(times) - 1)
    return exact


def _square(width: int, height: int, aspect: str) -> tuple[int, int]:
    """Return the size at which a video with pixels of this aspect looks as it is shown: its longer
    side grows, none shrinks.
    """
    over, under = map(int, aspect.split("/"))
    if not over or not under or abs(over / under - 1) <= SQUARE:
        return width, height
    if over > under:
        return round(width * over / under), height
    return width, round(height * under / over)


def _check_limits(path: Path, facts: dict[str, str], frames: int, elapsed: float) -> None:
    """Raise WanpipeError where a video is larger than any that we decode."""
    width, height = map(int, facts["dimensions"].split("x"))
    shown = _square(width, height, facts.get("sar", "0/1"))
    for what, value, limit in (
        ("pixels in a frame", shown[0] * shown[1], MAX_PIXELS),
        ("frames", frames, MAX_FRAMES),
        ("pixels in all", frames * width * height, MAX_TOTAL_PIXELS),
        ("seconds", elapsed, MAX_SECONDS),
    ):
        if value > limit:
            raise WanpipeError(f"video {path} has more than {limit:.0f} {what}; cut it first")


def _check_whole(path: Path, said: str, frames: int, code: int) -> None:
    """Raise WanpipeError where ffmpeg failed, lost frames or found none."""
    if "matches no streams" in said or "value '0:V:0'" in said:
        raise WanpipeError(f"{path} has no picture, only sound or text; give a video")
    if "Format not on whitelist" in said:
        raise WanpipeError(
            f"{path} is no video in a format that wanpipe reads, or a list of other files; "
            "convert it to .mp4"
        )
    damage, reason = decoder_log.damage(said), decoder_log.reason(said)
    if frames and (code or damage):
        raise WanpipeError(
            f"video {path} is damaged or cut short: {frames} frames could be read "
            f"({damage or reason}); get it again, or re-encode what is left with ffmpeg"
        )
    if code or damage:
        raise WanpipeError(
            f"{path} is no video, or one that is damaged or cut short: {reason}; give another"
        )
    if not frames:
        raise WanpipeError(f"video {path} has no frames; give another")


def _has_end(path: Path) -> bool:
    """Whether a file ends as its format says; True where the format has no such mark."""
    with path.open("rb") as file:
        if file.read(4) != b"GIF8":
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b";"


def _spans(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last of every run of frames that ffmpeg lets through, at most `MAX_SPANS`:
    beyond that the smallest gaps pass too.
    """
    frames = np.unique(np.asarray(indices, np.int64))
    gaps = np.diff(frames)
    cuts = np.flatnonzero(gaps > 1)
    if len(cuts) >= MAX_SPANS:
        largest = np.argsort(gaps[cuts], kind="stable")[len(cuts) - MAX_SPANS + 1 :]
        cuts = np.sort(cuts[largest])
    firsts = frames[np.concatenate([[0], cuts + 1])]
    lasts = frames[np.concatenate([cuts, [len(frames) - 1]])]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _between(spans: Sequence[tuple[int, int]]) -> str:
    """Write the condition for frames in `spans` as a tree: ffmpeg evaluates it for every frame."""
    if len(spans) == 1:
        return "between(n,{},{})".format(*spans[0])
    middle = len(spans) // 2
    return f"if(lt(n,{spans[middle][0]}),{_between(spans[:middle])},{_between(spans[middle:])})"
