"""What a video is made from, and its pixels: a video, a mask, reference images and key frames.

Refuses what a model cannot use, before any file is read. Loads no array library.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wanpipe.errors import UsageError
from wanpipe.models import geometry
from wanpipe.models.config import ModelConfig

if TYPE_CHECKING:
    import numpy as np

VideoFit = Literal["first", "whole"]
Mode = Literal["vace", "v2v", "i2v", "ti2v"]


@dataclass(frozen=True, kw_only=True)
class Params:
    """What a video is made from, and its canvas. None means the default for model and video.

    `keyframes` are numbers of frames, from 0, or negative ones from the end, and their images.
    `outpaint` are pixels of the video to add: left, top, right, bottom. `extend` is the number of
    last frames that are continued. `video_fit` takes the "first" frames at the model's rate, or
    thins the "whole" video, as the official code of VACE does. `exif` turns images as their EXIF
    orientation says. `memory` is a limit in bytes.
    """

    video: Path | None = None
    mask: Path | None = None
    references: tuple[Path, ...] = ()
    keyframes: tuple[tuple[int, Path], ...] = ()
    outpaint: tuple[int, int, int, int] | None = None
    extend: int | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    video_fit: VideoFit = "first"
    exif: bool = False
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The pixels of a video, its mask and its reference images, fitted to one canvas.

    `frames` (T, Y, X, 3) and `mask` (T, Y, X) are uint8; white is made anew. Without frames the
    video is mid gray, and without a mask all of it is made anew. References are (Y, X, 3) float32
    in [-1, 1]. The first `known_frames` are those of a video that is continued.
    """

    width: int
    height: int
    num_frames: int
    frames: "np.ndarray | None" = None
    mask: "np.ndarray | None" = None
    references: "tuple[np.ndarray, ...]" = ()
    known_frames: int = 0

    @property
    def chunks(self) -> int:
        """Chunks that the encoder takes one after another: one for each latent frame."""
        return (self.num_frames + 3) // 4

    @property
    def bytes(self) -> int:
        """Size of the pixels on the host."""
        arrays = (self.frames, self.mask, *self.references)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True, kw_only=True)
class FirstFrames:
    """The first frames of a video (K, Y, X, 3), float32 around [-1, 1], K = 4n+1, and the first one
    for CLIP (224, 224, 3) if that is wanted.
    """

    width: int
    height: int
    num_frames: int
    frames: "np.ndarray"
    clip: "np.ndarray | None"

    @property
    def known_frames(self) -> int:
        """The number of frames that are given, K."""
        return len(self.frames)

    @property
    def bytes(self) -> int:
        """Size of the pixels on the host."""
        return self.frames.nbytes


def choose_mode(config: ModelConfig, params: Params) -> Mode:
    """Return what the model makes of the inputs.

    Raises UsageError for one that it cannot use, or for an invalid canvas.
    """
    check_combination(params)
    asked_canvas(config, params)  # before a long video is read
    if config.task == "vace":
        return "vace"
    for option, given in (
        ("--reference", params.references),
        ("--keyframe", params.keyframes),
        ("--outpaint", params.outpaint),
    ):
        if given:
            raise UsageError(f"{config.variant} cannot use {option}; use a VACE model")
    if params.video is None:
        raise UsageError(f"{config.variant} needs a video here; give one with --video")
    if params.extend is not None and config.task == "t2v":
        raise UsageError(
            f"{config.variant} cannot continue a video; use an I2V, TI2V or VACE model, or leave "
            "--extend out to change the video"
        )
    if config.last_image == "required":
        raise UsageError(
            f"{config.variant} needs a first and a last image, so it cannot use a video; use an "
            "I2V, TI2V or VACE model"
        )
    if params.video_fit == "whole" and config.side_multiple > geometry.WHOLE_MULTIPLE:
        raise UsageError(
            f"{config.variant} cannot use --video-fit whole, which gives sides that are multiples "
            f"of {geometry.WHOLE_MULTIPLE}; leave it out"
        )
    if params.extend is None and config.task == "i2v":
        raise UsageError(
            f"{config.variant} can only continue a video; give --extend K, or use a T2V model to "
            "change it"
        )
    if params.extend is None:
        return "v2v"
    return "i2v" if config.task == "i2v" else "ti2v"


def check_combination(params: Params) -> None:
    """Raise UsageError for options that exclude or need each other."""
    needing = {"--mask": params.mask, "--outpaint": params.outpaint, "--extend": params.extend}
    given = [option for option, value in needing.items() if value is not None]
    if params.video is None and given:
        raise UsageError(f"{given[0]} is about a video, but none is given; add --video")
    if params.video is None and params.video_fit == "whole":
        raise UsageError("--video-fit is about a video, but none is given; add --video")
    if params.keyframes and params.video is not None:
        raise UsageError(
            "--keyframe and --video exclude each other, because all but the key frames is made; "
            "give one"
        )
    if params.extend is not None and len(given) > 1:
        other = next(option for option in given if option != "--extend")
        raise UsageError(f"--extend and {other} exclude each other; give one")
    if params.extend is not None and params.extend % 4 != 1:
        below = max(1, params.extend // 4 * 4 + 1)
        raise UsageError(f"extend must be 4n+1 frames, got {params.extend}; use {below}")
    if params.outpaint is not None and (min(params.outpaint) < 0 or not any(params.outpaint)):
        shown = ",".join(map(str, params.outpaint))
        raise UsageError(
            f"outpaint must be pixels to add, left, top, right and bottom, got {shown}; use for "
            "example 64,0,64,0"
        )
    if params.video_fit == "whole":
        for option, value in (
            ("--num-frames", params.num_frames),
            ("--extend", params.extend),
            ("--outpaint", params.outpaint),
        ):
            if value is not None:
                raise UsageError(
                    f"--video-fit whole chooses the frames itself, so it excludes {option}; leave "
                    "one out"
                )


def count_frames(config: ModelConfig, params: Params) -> int:
    """Return the number of frames of the video to make. Raises UsageError for an invalid one."""
    count = config.defaults.num_frames if params.num_frames is None else params.num_frames
    geometry.check_frames(count)
    if params.extend is not None and params.extend >= count:
        raise UsageError(
            f"extend must be less than the {count} frames of the video to make, got "
            f"{params.extend}; use a greater --num-frames"
        )
    for number, _ in params.keyframes:
        if not -count <= number < count:
            raise UsageError(
                f"a key frame must be 0 to {count - 1}, or -1 for the last one, got {number}; use "
                "a greater --num-frames"
            )
    return count


def asked_canvas(config: ModelConfig, params: Params) -> tuple[int, int] | None:
    """Return the canvas (width, height) that was asked for, in pixels, if one was.

    Raises UsageError for an invalid one.
    """
    if params.width is None and params.height is None:
        return None
    width = config.defaults.width if params.width is None else params.width
    height = config.defaults.height if params.height is None else params.height
    geometry.check_size(width, height, config.side_multiple)
    return width, height


def choose_canvas(config: ModelConfig, params: Params, width: int, height: int) -> tuple[int, int]:
    """Return the canvas that was asked for, or one for a video of this size, in pixels."""
    area = config.defaults.width * config.defaults.height
    return asked_canvas(config, params) or geometry.video_canvas(
        width, height, area, config.side_multiple
    )
