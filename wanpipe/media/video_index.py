"""Says when the frames of a video are on screen, and chooses frames by time.

Knows neither files nor ffmpeg.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from wanpipe.errors import UsageError

TOLERANCE = 1e-4  # seconds by which containers and floats may round a frame's start
TIME_STRIDE, SIDE_STRIDE = 4, 16  # pixels of a latent frame's token, in time and on each side
LATENT_FRAMES = 21  # of the official maximum: 81 frames at the full area


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """The size of a video in pixels, and when each frame is on screen, in seconds from the first.

    `times` (frames,) and `ends` (frames,) are float64 and rise; a frame ends where the next starts.
    """

    width: int
    height: int
    times: np.ndarray
    ends: np.ndarray

    @property
    def frames(self) -> int:
        """How many frames there are, at least one."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """The average rate in frames per second."""
        return self.frames / float(self.ends[-1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Thinned:
    """Which frames the official code takes, (4n+1,) int64, and the size it gives them in pixels."""

    indices: np.ndarray
    width: int
    height: int


def choose_whole(index: VideoIndex, mask: VideoIndex | None, area: int) -> Thinned:
    """Choose frames evenly over a whole video, and a size that keeps its aspect, as officially.

    `area` is in pixels, officially 480*832 or 720*1280. A smaller video is not enlarged, and may
    keep more frames. A shorter mask cuts the video. Raises UsageError for a video that is too
    narrow. Source: wan/utils/vace_processor.py, VaceVideoProcessor._get_frameid_bbox.
    """
    frames = index.frames if mask is None else min(index.frames, mask.frames)
    tokens = area / SIDE_STRIDE**2  # of a latent frame
    longest = LATENT_FRAMES * tokens
    tokens = min(tokens, (index.height // SIDE_STRIDE) * (index.width // SIDE_STRIDE))
    latents = 0
    if tokens:
        latents = min((frames - 1) // TIME_STRIDE + 1, int(longest / tokens))
        tokens = min(tokens, int(longest / latents))
    rows = round(math.sqrt(tokens * (index.height / index.width)))
    columns = int(tokens / rows) if rows else 0
    if not columns:
        raise UsageError(
            f"a video of {index.width}x{index.height} is too small or too narrow: it must fill "
            f"{SIDE_STRIDE}x{SIDE_STRIDE} pixels in its aspect; crop or enlarge it first"
        )
    # float32, as decord gives times: on a boundary this decides which frame is taken
    starts = index.times[:frames].astype(np.float32)
    ends = index.ends[:frames].astype(np.float32)
    middle = np.stack([starts[-1:], ends[-1:]]).mean(dtype=np.float32)
    times = np.linspace(0.0, float(middle), TIME_STRIDE * (latents - 1) + 1)
    # on the boundary of two frames the first is taken
    indices = np.minimum(np.searchsorted(ends, times, side="left"), frames - 1)
    return Thinned(
        indices=indices.astype(np.int64), width=columns * SIDE_STRIDE, height=rows * SIDE_STRIDE
    )


def choose_first(index: VideoIndex, fps: float, count: int | None = None) -> np.ndarray:
    """Choose the frames on screen at 0, 1/fps, 2/fps, … seconds: (count,) int64, or fewer where the
    video ends before. Without a count, those of the whole video.
    """
    most = max(1, math.ceil((float(index.ends[-1]) - TOLERANCE) * fps))
    return _on_screen(index, np.arange(most if count is None else min(count, most)) / fps)


def choose_last(index: VideoIndex, fps: float, count: int) -> np.ndarray:
    """Choose the last frame and those on screen 1/fps, 2/fps, … seconds before it started, in
    order of time: (count,) int64, or fewer where the video begins later.
    """
    last = float(index.times[-1])
    count = min(count, math.floor((last + TOLERANCE) * fps) + 1)
    return _on_screen(index, last - np.arange(count)[::-1] / fps)


def _on_screen(index: VideoIndex, times: np.ndarray) -> np.ndarray:
    """Return the last frame that has started at each time, (times,) int64."""
    started = np.searchsorted(index.times, times + TOLERANCE, side="right")
    return np.maximum(started - 1, 0).astype(np.int64)


def seconds_of(ticks: np.ndarray, tick: Fraction) -> np.ndarray:
    """Convert starts of frames in ticks of a container, from 0, to seconds (frames,) float64.

    Starts that differ from a constant rate only because the container counts in coarse ticks, such
    as whole milliseconds, are made even again: rounding would repeat one frame and lose the next.
    """
    exact: np.ndarray = ticks * tick.numerator / tick.denominator
    steps = np.diff(ticks)
    if len(steps) < 2 or steps.max() - steps.min() != 1 or steps.min() < 4:
        return exact
    rate = len(steps) / exact[-1]
    for fps in (
        Fraction(round(rate * 4), 4),
        Fraction(round(rate * 1.001) * 1000, 1001),  # 23.976, 29.97, …
    ):
        if fps > 0:
            even: np.ndarray = np.arange(len(ticks)) * fps.denominator / fps.numerator
            if np.abs(even - exact).max() <= float(tick) * 1.001:
                return even
    return exact
