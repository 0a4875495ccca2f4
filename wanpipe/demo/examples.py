"""Examples for the demo: what each makes a video from, drawn in the world of the demo models.

An example draws its inputs into a folder, so that a user can look at them and use them again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MARGIN = 8  # pixels of a mask around what moves
KNOWN = 5  # frames of a clip that are continued
CUT = 9  # frames of the clip that is continued
EDGE = 24  # pixels that are painted anew on the left and on the right


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Drawn inputs: options of encode-image, encode-video, denoise and decode by name, and rows of
    frames (T, Y, X, 3) uint8 with labels for the contact sheet.
    """

    image: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    denoise: dict[str, Any] = field(default_factory=dict)
    decode: dict[str, Any] = field(default_factory=dict)
    rows: "list[tuple[str, np.ndarray]]" = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A model of the demo by its name, a prompt, and the function that draws the other inputs.

    `shown` are kinds of words that the prompt need not have, because the inputs show them.
    """

    checkpoint: str
    prompt: str
    draw: Callable[[Path], Inputs]
    shown: tuple[str, ...] = ()


def nothing(folder: Path) -> Inputs:
    """Draw nothing: the prompt is all."""
    return Inputs()


def last_image(folder: Path) -> Inputs:
    """Draw the first and the last frame of a circle that moves right."""
    clip = render("circle", "red", "right", "white", "fast")
    first, last = save(folder / "first.png", clip[0]), save(folder / "last.png", clip[-1])
    ends = clip[[0, -1]]
    return Inputs(image={"image": first, "last_image": last}, rows=[("first and last image", ends)])


def continuation(folder: Path) -> Inputs:
    """Draw the first half of a clip of a circle that moves right."""
    half = render("circle", "red", "right", "white", "slow")[:CUT]
    clip = write(folder / "clip.mp4", half)
    return Inputs(
        video={"video": clip, "extend": KNOWN}, decode={"after": clip}, rows=[("clip", half)]
    )


def inpainting(folder: Path) -> Inputs:
    """Draw a clip of a red circle, and a mask of the place where it moves."""
    clip = render("circle", "red", "right", "white", "slow")
    moved = (abs(clip.astype(int) - clip[:, :1, :1]) > MARGIN).any(axis=(0, 3))
    mask = box_around(moved)
    video = {"video": write(folder / "clip.mp4", clip), "mask": save(folder / "mask.png", mask)}
    return Inputs(video=video, rows=[("clip", clip), ("mask", mask[None])])


def outpainting(folder: Path) -> Inputs:
    """Draw a clip of a star, narrower than the video to make."""
    clip = render("star", "yellow", "still", "black", None)[:, :, EDGE:-EDGE]
    video = {"video": write(folder / "narrow.mp4", clip), "outpaint": (EDGE, 0, EDGE, 0)}
    return Inputs(video=video, rows=[("narrow clip", clip)])


def reference(folder: Path) -> Inputs:
    """Draw a green square on white."""
    image = render("square", "green", "still", "white", None)[0]
    video = {"references": (save(folder / "reference.png", image),)}
    return Inputs(video=video, rows=[("reference image", image[None])])


def control(folder: Path) -> Inputs:
    """Draw the outline of a triangle that moves up."""
    clip = render("triangle", "blue", "up", "grey", "slow", outline=True)
    return Inputs(
        video={"video": write(folder / "outline.mp4", clip)}, rows=[("control video", clip)]
    )


def change(folder: Path) -> Inputs:
    """Draw a clip of a red circle that moves right."""
    clip = render("circle", "red", "right", "white", "slow")
    return Inputs(
        video={"video": write(folder / "clip.mp4", clip)},
        denoise={"strength": 0.9},
        rows=[("clip", clip)],
    )


EXAMPLES = {
    "text": Example(
        checkpoint="t2v", prompt="a red circle moves right on a white background", draw=nothing
    ),
    "last-image": Example(
        checkpoint="i2v-a14b",
        prompt="a red circle moves right on a white background",
        draw=last_image,
    ),
    "continue": Example(
        checkpoint="i2v-a14b",
        prompt="a red circle moves right slowly on a white background",
        draw=continuation,
    ),
    "inpaint": Example(
        checkpoint="vace", prompt="a blue square moves right on a white background", draw=inpainting
    ),
    "outpaint": Example(
        checkpoint="vace",
        prompt="a yellow star stays still on a black background",
        draw=outpainting,
    ),
    "reference": Example(
        checkpoint="vace",
        prompt="a shape moves left on a black background",
        draw=reference,
        shown=("shape", "color"),
    ),
    "control": Example(
        checkpoint="vace",
        prompt="a pink triangle moves up on a grey background",
        draw=control,
    ),
    "change": Example(
        checkpoint="t2v", prompt="a blue circle moves right on a white background", draw=change
    ),
}


def render(
    shape: str, color: str, motion: str, background: str, speed: str | None, outline: bool = False
) -> "np.ndarray":
    """Draw a clip (T, Y, X, 3) uint8."""
    from wanpipe.demo import world

    scene = world.Scene(shape=shape, color=color, motion=motion, background=background, speed=speed)
    return world.render(scene, outline=outline)


def box_around(moved: "np.ndarray") -> "np.ndarray":
    """Return a mask (Y, X, 3), white in the box around all pixels that are set in (Y, X)."""
    import numpy as np

    mask = np.zeros((*moved.shape, 3), dtype=np.uint8)
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    top, left = max(rows[0] - MARGIN, 0), max(columns[0] - MARGIN, 0)
    mask[top : rows[-1] + MARGIN, left : columns[-1] + MARGIN] = 255
    return mask


def save(path: Path, image: "np.ndarray") -> Path:
    """Write an image as PNG."""
    from PIL import Image

    Image.fromarray(image).save(path)
    return path


def write(path: Path, clip: "np.ndarray") -> Path:
    """Write a clip as a video."""
    from wanpipe.demo import world
    from wanpipe.media.video import write_video

    return write_video(path, [clip], world.FPS)
