"""Options that several commands share, as decorators.

A default that depends on the model is part of the help text, because click does not know it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wanpipe.cli import seeds
from wanpipe.cli.values import Integers, Numbers, Size
from wanpipe.errors import UsageError

Command = Callable[..., None]


PATH = click.Path(path_type=Path)


def group(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine options into one decorator. --help shows them in this order."""

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


model = click.option(
    "--model",
    metavar="MODEL",
    help="Use this converted model: a directory, a cache entry, a name, or a repository ORG/NAME "
    "that was downloaded.",
)
sources = click.option(
    "--from",
    "references",
    multiple=True,
    metavar="ENTRY",
    help="Start from this cache entry: a path, a key prefix or a name. Repeatable.",
)
negative = group(
    click.option(
        "--negative-prompt",
        metavar="TEXT",
        help="Set the negative prompt. If omitted or empty, the model's default is used.",
    ),
    click.option("--no-negative-prompt", is_flag=True, help="Use an empty negative prompt."),
)
checkpoint = group(
    click.option(
        "--checkpoint-dir",
        type=PATH,
        metavar="DIR|REPO",
        help="Convert the checkpoint in DIR, or in the repository REPO that was downloaded: the "
        "official layout, diffusers, ComfyUI or GGUF files.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32"]),
        default="bfloat16",
        show_default=True,
        help="Store the weight matrices in this type.",
    ),
    click.option(
        "--model-version",
        type=click.Choice(["auto", "2.1", "2.2"]),
        default="auto",
        show_default=True,
        help="Require this version of Wan.",
    ),
)
quantization = group(
    click.option(
        "-q",
        "quantize_bits",
        type=click.Choice([4, 8]),
        help="Short for --quantize --bits, as in -q 4.",
    ),
    click.option("--quantize", is_flag=True, help="Quantize the transformer blocks."),
    click.option("--quantize-text-encoder", is_flag=True, help="Quantize the T5 blocks."),
    click.option(
        "--bits",
        type=click.Choice([4, 8]),
        help="Quantize to this many bits per weight.  [default: 4; 8 for T5]",
    ),
    click.option(
        "--group-size",
        type=click.Choice([32, 64, 128]),
        help="Share one scale among this many weights.  [default: 64]",
    ),
)
canvas = group(
    click.option(
        "--width",
        type=int,
        metavar="PIXELS",
        help="Set the width of the video.  [default: the model's]",
    ),
    click.option(
        "--height",
        type=int,
        metavar="PIXELS",
        help="Set the height of the video.  [default: the model's]",
    ),
    click.option(
        "--num-frames",
        type=int,
        metavar="N",
        help="Set the number of frames, which must be 4n+1.  [default: the model's]",
    ),
)
image = group(
    click.option(
        "--image", type=PATH, metavar="FILE", help="Use this image as the first frame of the video."
    ),
    click.option(
        "--last-image",
        type=PATH,
        metavar="FILE",
        help="Use this image as the last frame of the video (FLF2V and Wan2.2 I2V-A14B).",
    ),
    click.option(
        "--fit",
        type=click.Choice(["stretch", "cover", "pad", "official"]),
        help="Stretch, crop (cover) or pad the image to the size of the video, or do as the "
        "official code.  [default: the model's; cover with --width or --height]",
    ),
)
exif = click.option(
    "--exif", is_flag=True, help="Turn images by their EXIF orientation, like a viewer."
)
video_inputs = group(
    click.option(
        "--video",
        type=PATH,
        metavar="FILE|FOLDER",
        help="Read this video, or a folder of PNG or JPEG frames.",
    ),
    click.option(
        "--mask",
        type=PATH,
        metavar="FILE|FOLDER",
        help="Make anew what is white in this video or image, and keep what is black.",
    ),
    click.option(
        "--reference",
        "references",
        type=PATH,
        multiple=True,
        metavar="IMAGE",
        help="Show what is in this image (VACE). Repeatable.",
    ),
    click.option(
        "--keyframe",
        "keyframes",
        type=(int, PATH),
        multiple=True,
        metavar="N IMAGE",
        help="Use this image as frame N, from 0, or from the end, from -1 (VACE). Repeatable.",
    ),
    click.option(
        "--outpaint",
        type=Integers(4),
        metavar="L,T,R,B",
        help="Add this many pixels of the video at its left, top, right and bottom (VACE).",
    ),
    click.option(
        "--extend",
        type=int,
        metavar="K",
        help="Continue the video after its last frame; its last K frames, 4n+1, become the first "
        "ones.",
    ),
    click.option(
        "--video-fit",
        type=click.Choice(["first", "whole"]),
        default="first",
        show_default=True,
        help="Take the first frames at the model's rate, or thin the whole video, as the official "
        "code of VACE does.",
    ),
)
sampling = group(
    click.option(
        "--steps",
        type=int,
        metavar="N",
        help="Set the number of denoising steps.  [default: the model's]",
    ),
    click.option(
        "--guide-scale",
        type=Numbers(),
        metavar="G|LOW,HIGH",
        help="Set the guidance scale, or one for each expert. At 1, the negative prompt is not "
        "used, unless --nag is given.  [default: the model's]",
    ),
    click.option(
        "--nag",
        type=float,
        metavar="SCALE",
        help="Apply the negative prompt within cross-attention, e.g. 11 (normalized attention "
        "guidance). 1 turns it off.  [default: off]",
    ),
    click.option(
        "--nag-tau",
        type=float,
        metavar="X",
        help="Limit the guided attention to this many times the norm of that to the prompt.  "
        "[default: 2.5]",
    ),
    click.option(
        "--nag-alpha",
        type=float,
        metavar="X",
        help="Set the part of the guided attention in the result.  [default: 0.25]",
    ),
    click.option(
        "--shift",
        type=float,
        metavar="X",
        help="Set the shift of the noise schedule.  [default: the model's]",
    ),
    click.option(
        "--scheduler",
        type=click.Choice(["unipc", "dpm++", "euler", "lcm"]),
        help="Choose the solver; lcm is for distilled models that add new noise at every step.  "
        "[default: the model's, or else unipc]",
    ),
    click.option(
        "--timesteps",
        type=Numbers(),
        metavar="T,T,...",
        help="Use these timesteps, e.g. 1000,750,500,250. The shift is applied to them.",
    ),
    click.option(
        "--step-cache",
        type=float,
        metavar="THRESHOLD",
        help="Reuse the last velocity while it changes by less than THRESHOLD, e.g. 0.05 "
        "(EasyCache). Faster, but not exact.  [default: off]",
    ),
    seeds.option,
    seeds.auto_option,
    click.option(
        "--noise",
        type=PATH,
        metavar="FILE",
        help="Start from the noise in this .npy file, of shape (C, F, H, W), instead of a seed.",
    ),
    click.option(
        "--trim-first-frames",
        type=int,
        metavar="N",
        help="Generate N extra latent frames at the start, and drop their 4N video frames.  "
        "[default: 0]",
    ),
    click.option(
        "--strength",
        type=float,
        metavar="S",
        help="Change a video by this part of the steps: 1 changes all of it.  [default: 0.8]",
    ),
    click.option(
        "--context-scale",
        type=float,
        metavar="S",
        help="Set the weight of VACE's context.  [default: 1]",
    ),
)
LORA: dict[str, Any] = {"type": (PATH, float), "multiple": True, "metavar": "PATH STRENGTH"}
loras = group(
    click.option(
        "--lora",
        **LORA,
        help="Apply a LoRA to every expert: a file, or ORG/NAME:FILE that was downloaded. "
        "Repeatable.",
    ),
    click.option("--lora-high", **LORA, help="Apply a LoRA to the high-noise expert. Repeatable."),
    click.option("--lora-low", **LORA, help="Apply a LoRA to the low-noise expert. Repeatable."),
)
memory = click.option(
    "--memory",
    type=Size(),
    metavar="SIZE",
    help="Limit memory use, e.g. 12GB.  [default: what the device recommends]",
)
devices = click.option(
    "--devices",
    type=int,
    metavar="N",
    help="Compute each step on N devices of this host together.",
)
stop_at = click.option(
    "--stop-at", type=int, metavar="K", help="Stop after step K. The run can be resumed later."
)
video = group(
    click.option(
        "--output",
        type=PATH,
        metavar="FILE",
        help="Write the video to FILE: .mp4, .webm, .gif, or a folder of .png frames. Its name "
        "may have {seed}, {key}, {prompt} and {n}.",
    ),
    click.option(
        "--fps",
        type=float,
        metavar="N",
        help="Set the frames per second of the video.  [default: the model's]",
    ),
    click.option(
        "--tiling",
        type=click.Choice(["auto", "none", "spatial"]),
        default="auto",
        show_default=True,
        help="Decode in overlapping tiles, which need less memory. With auto, only if needed.",
    ),
    click.option(
        "--after",
        type=PATH,
        metavar="FILE",
        help="Join the video to this one, which it continues (--extend); their common frames fade "
        "into each other.",
    ),
)
TINY = "WANPIPE_VAE_TINY"
tiny = group(
    click.option(
        "--tiny",
        is_flag=True,
        help="Decode with the tiny VAE that --vae-tiny or $WANPIPE_VAE_TINY names: much faster, "
        "with less detail.",
    ),
    click.option(
        "--vae-tiny",
        type=PATH,
        metavar="FILE",
        help="Decode with this tiny VAE: taew2_1 or, for TI2V-5B, taew2_2 of TAEHV, as "
        ".safetensors or .pth.",
    ),
)


def read_tiny(tiny: bool, file: Path | None) -> Path | None:
    """Return the file of the tiny VAE to decode with; None for the model's own VAE.

    The environment only names the file: without --tiny it changes nothing. Raises UsageError if no
    file is named.
    """
    if file is None and tiny:
        if not (named := os.environ.get(TINY)):
            raise UsageError(f"--tiny needs the file of a tiny VAE; use --vae-tiny or ${TINY}")
        return Path(named)
    return file


def read_negative(text: str | None, none: bool) -> str | None:
    """Return the negative prompt to encode; None for the model's default.

    An empty text means the default too, as in the official code; `none` asks for the empty prompt.
    Raises UsageError if both are given.
    """
    if text and none:
        raise UsageError("--negative-prompt and --no-negative-prompt exclude each other; give one")
    return "" if none else (text or None)
