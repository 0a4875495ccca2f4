"""The options that several commands share, as decorators, and how their values are read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wanpipe.errors import UsageError
from wanpipe.runtime.units import read_size

Command = Callable[..., None]


class Size(click.ParamType[int]):
    """A size such as 12GB, in bytes."""

    name = "size"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int:
        """Read the size, or fail with click's message."""
        if isinstance(value, int):
            return value
        try:
            return read_size(value)
        except UsageError as error:
            self.fail(str(error), parameter, context)


PATH = click.Path(path_type=Path)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between."""

    name = "number[,number...]"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        """Read the numbers, or fail with click's message."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = (math.nan,)
        if not all(math.isfinite(number) for number in numbers):
            self.fail(f"must be numbers with commas between, got {value!r}", parameter, context)
        return numbers


def group(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Join options into one decorator; --help shows them in this order."""

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


model = click.option(
    "--model",
    metavar="MODEL",
    help="A model that `wanpipe convert` wrote: directory, entry or name.",
)
sources = click.option(
    "--from",
    "references",
    multiple=True,
    metavar="ENTRY",
    help="An entry to work from: path, key prefix or name. Repeatable.",
)
negative = group(
    click.option(
        "--negative-prompt", help="What it must not show. Default, and when empty: the model's own."
    ),
    click.option(
        "--no-negative-prompt", is_flag=True, help="Take the empty text as negative prompt."
    ),
)
checkpoint = group(
    click.option("--checkpoint-dir", type=PATH, help="A checkpoint in the official layout."),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32"]),
        default="bfloat16",
        show_default=True,
        help="Of the converted matrices.",
    ),
    click.option(
        "--model-version",
        type=click.Choice(["auto", "2.1", "2.2"]),
        default="auto",
        show_default=True,
        help="Insist on a version of Wan.",
    ),
)
quantization = group(
    click.option("--quantize", is_flag=True, help="Store the transformer blocks in fewer bits."),
    click.option("--quantize-text-encoder", is_flag=True, help="Store T5's blocks in fewer bits."),
    click.option(
        "--bits",
        type=click.Choice([4, 8]),
        help="Bits per weight. Default: 4, of T5 8.",
    ),
    click.option(
        "--group-size",
        type=click.Choice([32, 64, 128]),
        help="Weights that share a scale. Default: 64.",
    ),
)
canvas = group(
    click.option("--width", type=int, help="Pixels. Default: the model's."),
    click.option("--height", type=int, help="Pixels. Default: the model's."),
    click.option("--num-frames", type=int, help="4n+1. Default: the model's."),
)
image = group(
    click.option("--image", type=PATH, help="The first frame of the video."),
    click.option(
        "--fit",
        type=click.Choice(["stretch", "cover", "pad"]),
        help="How the image meets the canvas. Default: the official way; with --width cover.",
    ),
)
sampling = group(
    click.option("--steps", type=int, help="Denoising steps. Default: the model's."),
    click.option(
        "--guide-scale",
        type=Numbers(),
        metavar="G|LOW,HIGH",
        help="Guidance; a pair for two experts. 1 skips the negative prompt. Default: the model's.",
    ),
    click.option("--shift", type=float, help="Shift of the noise levels. Default: the model's."),
    click.option(
        "--scheduler",
        type=click.Choice(["unipc", "dpm++", "euler"]),
        help="Solver. Default: unipc.",
    ),
    click.option(
        "--timesteps",
        type=Numbers(),
        metavar="T,T,...",
        help="Explicit timesteps before the shift, such as 1000,750,500,250.",
    ),
    click.option(
        "--step-cache",
        type=float,
        metavar="THRESHOLD",
        help="Reuse velocities that change by less, such as 0.05: faster, not exact. Default: off.",
    ),
    click.option("--seed", "seeds", type=int, multiple=True, help="Repeatable. Default: 0."),
    click.option(
        "--noise", type=PATH, help="Start noise (C, F, H, W) as .npy, in place of a seed."
    ),
    click.option(
        "--trim-first-frames",
        type=int,
        metavar="N",
        help="Make N more latent frames at the start and drop their 4N frames after decoding.",
    ),
)
LORA: dict[str, Any] = {"type": (PATH, float), "multiple": True, "metavar": "PATH STRENGTH"}
loras = group(
    click.option("--lora", **LORA, help="A LoRA for every expert. Repeatable."),
    click.option("--lora-high", **LORA, help="A LoRA for the high-noise expert. Repeatable."),
    click.option("--lora-low", **LORA, help="A LoRA for the low-noise expert. Repeatable."),
)
memory = click.option(
    "--memory",
    type=Size(),
    metavar="SIZE",
    help="Keep within so much, such as 12GB. Default: what the device recommends.",
)
stop_at = click.option(
    "--stop-at", type=int, metavar="K", help="Stop after step K; finish it later."
)
film = group(
    click.option(
        "--output", type=PATH, help="A film: .mp4, .webm, .gif, or a folder of .png frames."
    ),
    click.option("--fps", type=float, help="Frames per second. Default: the model's."),
    click.option(
        "--tiling",
        type=click.Choice(["auto", "none", "spatial"]),
        default="auto",
        show_default=True,
        help="Decode in overlapping tiles, for less memory.",
    ),
)


def read_negative(text: str | None, none: bool) -> str | None:
    """Read --negative-prompt as the official code does: empty means the model's own, unless none is
    asked for.
    """
    if text and none:
        raise UsageError("--negative-prompt and --no-negative-prompt exclude each other; give one")
    return "" if none else (text or None)
