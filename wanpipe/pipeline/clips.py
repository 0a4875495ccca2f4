"""Reads videos, masks, reference images and key frames, and fits them to one canvas.

Knows nothing of networks or entries.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wanpipe.errors import UsageError
from wanpipe.models.config import ModelConfig
from wanpipe.pipeline.video_inputs import (
    Clip,
    FirstFrames,
    Params,
    asked_canvas,
    choose_canvas,
    count_frames,
)
from wanpipe.runtime.report import Report

if TYPE_CHECKING:
    from wanpipe.media.image import Resample
    from wanpipe.media.video_index import VideoIndex

Change = Callable[[np.ndarray], np.ndarray]
GRAY, WHITE = 127, 255  # of what is made anew: in the video, as VACE's tools paint it, and the mask
MASK_ASPECT = 1.05  # by which a mask's may differ: 832x480 is meant for a video of 1920x1080


def read_clip(config: ModelConfig, params: Params, report: Report) -> Clip:
    """Read the inputs of VACE, or a video to change and its mask. Raises UsageError."""
    if params.video_fit == "whole" and params.video is not None:
        clip = whole_video(config, params, params.video, report)
    elif params.extend is not None and params.video is not None:
        clip = extended_video(config, params, params.video, report)
    elif params.video is not None:
        clip = first_part(config, params, params.video, report)
    else:
        clip = key_frames(config, params, report)
    mask = checked_mask(clip.mask)
    return replace(clip, mask=mask, references=references(clip, params, report))


def checked_mask(mask: np.ndarray | None) -> np.ndarray | None:
    """Return a mask; None for one that is all white. Raises UsageError for one without white."""
    if mask is None or (mask == WHITE).all():
        return None
    if mask.max() <= GRAY:
        raise UsageError(
            "the mask has no white, so nothing would be made anew; paint white what shall change"
        )
    return mask


def whole_video(config: ModelConfig, params: Params, video: Path, report: Report) -> Clip:
    """Thin a whole video to the frames and the size that the official code of VACE chooses.

    Source: wan/vace.py, WanVace.prepare_source; wan/utils/vace_processor.py.
    """
    from wanpipe.media.video_index import choose_whole
    from wanpipe.media.video_reader import probe

    defaults, fps = config.defaults, config.defaults.fps
    area = (params.width or defaults.width) * (params.height or defaults.height)
    index = probe(video, report, fps=fps)
    masks = None if params.mask is None else probe(params.mask, report, fps=fps)
    chosen = choose_whole(index, masks, area)

    def cut(frame: np.ndarray) -> np.ndarray:
        return frame[: index.height, : index.width]

    size, indices = (chosen.width, chosen.height), chosen.indices
    frames, mask = read_fitted(video, indices, size, report), None
    if params.mask is not None:
        mask = read_fitted(params.mask, indices, size, report, cut)[..., 0]
    return Clip(width=size[0], height=size[1], num_frames=len(indices), frames=frames, mask=mask)


def first_part(config: ModelConfig, params: Params, video: Path, report: Report) -> Clip:
    """Read the first frames of a video, at the model's rate, and of its mask."""
    from wanpipe.media.video_index import choose_first
    from wanpipe.media.video_reader import probe

    count, fps = count_frames(config, params), config.defaults.fps
    index = probe(video, report, fps=fps, seconds=count / fps)
    indices = choose_first(index, fps, count)
    shown = indices
    if params.mask is not None:
        masks = probe(params.mask, report, fps=fps, seconds=count / fps)
        check_aspect(params.mask, masks, index)
        shown = choose_first(masks, fps, count)
        if len(shown) == 1:  # a still image
            shown = np.repeat(shown, len(indices))
    count = enough_frames(params, min(len(indices), len(shown)), count, fps, report)
    left, top, right, bottom = params.outpaint or (0, 0, 0, 0)
    size = choose_canvas(config, params, index.width + left + right, index.height + top + bottom)
    frames = read_fitted(video, indices[:count], size, report, padder(params.outpaint, GRAY))
    mask = None
    if params.mask is not None:
        pad = padder(params.outpaint, WHITE, (index.width, index.height))
        mask = read_fitted(params.mask, shown[:count], size, report, pad)[..., 0]
    elif params.outpaint is not None:
        black = np.zeros((index.height, index.width, 3), dtype=np.uint8)
        edge = fit_frame(padder(params.outpaint, WHITE)(black), size)[..., 0]
        mask = np.broadcast_to(edge, (count, *edge.shape))
    return Clip(width=size[0], height=size[1], num_frames=count, frames=frames, mask=mask)


def check_aspect(path: Path, mask: "VideoIndex", video: "VideoIndex") -> None:
    """Raise UsageError for a mask that would be cropped to the aspect ratio of its video."""
    ratio = mask.width * video.height / (mask.height * video.width)
    if not 1 / MASK_ASPECT <= ratio <= MASK_ASPECT:
        raise UsageError(
            f"a mask must have the aspect ratio of its video, {video.width}x{video.height}, but "
            f"{path} has {mask.width}x{mask.height}; crop it, or draw it on a frame of the video"
        )


def enough_frames(params: Params, found: int, wanted: int, fps: int, report: Report) -> int:
    """Return how many frames are taken of a video: those that are wanted, or fewer by default,
    with a remark.

    Raises UsageError for a video with fewer frames than --num-frames.
    """
    if found >= wanted:
        return wanted
    most = (found - 1) // 4 * 4 + 1
    has = (
        f"{params.video}{' with its mask' if params.mask else ''} has {found} frames at {fps} per "
        "second"
    )
    if params.num_frames is not None:
        raise UsageError(
            f"{has}, fewer than --num-frames {wanted}; use at most {most}, or --extend to continue "
            "the video"
        )
    report.remark(f"{has}, so {most} frames are made instead of {wanted}")
    return most


def extended_video(config: ModelConfig, params: Params, video: Path, report: Report) -> Clip:
    """Read the last frames of a video, and leave the frames after them to be made."""
    count = count_frames(config, params)
    index, indices = last_frames(config, params, video, report)
    size = choose_canvas(config, params, index.width, index.height)
    known = read_fitted(video, indices, size, report)
    frames = np.full((count, size[1], size[0], 3), GRAY, dtype=np.uint8)
    mask = np.full(frames.shape[:3], WHITE, dtype=np.uint8)
    frames[: len(known)], mask[: len(known)] = known, 0
    return Clip(
        width=size[0],
        height=size[1],
        num_frames=count,
        frames=frames,
        mask=mask,
        known_frames=len(known),
    )


def last_frames(
    config: ModelConfig, params: Params, video: Path, report: Report
) -> "tuple[VideoIndex, np.ndarray]":
    """Return the index of a video, and the numbers of the last frames, at the model's rate.

    Raises UsageError for a video that is too short.
    """
    from wanpipe.media.video_index import choose_last
    from wanpipe.media.video_reader import probe

    assert params.extend is not None
    fps = config.defaults.fps
    index = probe(video, report, fps=fps)
    indices = choose_last(index, fps, params.extend)
    if len(indices) < params.extend:
        raise UsageError(
            f"{video} has {len(indices)} frames at {fps} per second, fewer than --extend "
            f"{params.extend}; use at most {(len(indices) - 1) // 4 * 4 + 1}"
        )
    return index, indices


def key_frames(config: ModelConfig, params: Params, report: Report) -> Clip:
    """Read key frames, if there are any; all other frames are made."""
    from wanpipe.media.image import open_image, pixels_of

    count, defaults = count_frames(config, params), config.defaults
    images = [
        (number % count, pixels_of(open_image(path, params.exif, report=report)))
        for number, path in params.keyframes
    ]
    numbers = [number for number, _ in images]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"key frames must have different numbers, got {numbers}; leave one out")
    if not images:
        size = asked_canvas(config, params) or (defaults.width, defaults.height)
        return Clip(width=size[0], height=size[1], num_frames=count)
    rows, columns = images[0][1].shape[:2]
    size = choose_canvas(config, params, columns, rows)
    frames = np.full((count, size[1], size[0], 3), GRAY, dtype=np.uint8)
    mask = np.full(frames.shape[:3], WHITE, dtype=np.uint8)
    for number, pixels in images:
        frames[number], mask[number] = fit_frame(pixels, size), 0
    return Clip(width=size[0], height=size[1], num_frames=count, frames=frames, mask=mask)


def references(clip: Clip, params: Params, report: Report) -> tuple[np.ndarray, ...]:
    """Read the reference images, fitted inside the canvas on white."""
    from wanpipe.media.image import open_image
    from wanpipe.media.reference import place_reference

    opened = (open_image(path, params.exif, report=report) for path in params.references)
    return tuple(place_reference(image, clip.width, clip.height) for image in opened)


def read_first_frames(
    config: ModelConfig, params: Params, clip: bool, report: Report
) -> FirstFrames:
    """Read the last frames of a video as the first ones of the video to make, fitted as images are.

    `clip` asks for pixels for CLIP too.
    """
    from PIL import Image

    from wanpipe.media.image import clip_pixels, fit
    from wanpipe.media.video_reader import read_frames

    assert params.video is not None
    count = count_frames(config, params)
    index, indices = last_frames(config, params, params.video, report)
    width, height = choose_canvas(config, params, index.width, index.height)
    resample: Resample = "lanczos" if config.task == "ti2v" else "bicubic"
    frames, features = [], None
    for frame in read_frames(params.video, indices.tolist(), report):
        if clip and features is None:
            features = clip_pixels(frame)
        frames.append(fit(Image.fromarray(frame), width, height, "cover", resample))
    return FirstFrames(
        width=width, height=height, num_frames=count, frames=np.stack(frames), clip=features
    )


def read_fitted(
    path: Path,
    indices: np.ndarray,
    size: tuple[int, int],
    report: Report,
    before: Change = lambda frame: frame,
) -> np.ndarray:
    """Read frames and fit them to a canvas (width, height): (T, Y, X, 3) uint8.

    `before` changes each frame before it is fitted.
    """
    from wanpipe.media.video_reader import read_frames

    fitted = np.empty((len(indices), size[1], size[0], 3), dtype=np.uint8)
    for number, frame in enumerate(read_frames(path, indices.tolist(), report)):
        fitted[number] = fit_frame(before(frame), size)
    return fitted


def fit_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cover a canvas (width, height) with a frame (Y, X, 3) uint8, and crop it to the center."""
    from wanpipe.media.resize import resize_crop

    return resize_crop(frame, size[1], size[0])


def padder(
    edges: tuple[int, int, int, int] | None, value: int, size: tuple[int, int] | None = None
) -> Change:
    """Return the function that adds edges (left, top, right, bottom) of one value to a frame.

    The edges are pixels of a frame of `size` (width, height), to which the frame is first fitted.
    """
    if edges is None:
        return lambda frame: frame
    left, top, right, bottom = edges
    widths = ((top, bottom), (left, right), (0, 0))

    def pad(frame: np.ndarray) -> np.ndarray:
        frame = frame if size is None else fit_frame(frame, size)
        padded: np.ndarray = np.pad(frame, widths, constant_values=value)
        return padded

    return pad
