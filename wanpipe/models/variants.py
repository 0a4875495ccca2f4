"""The models of the Wan family, with their official defaults, as data."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from wanpipe.models import geometry
from wanpipe.runtime.documents import Document

MAX_SCALE = 1 << 53  # of guidance and shift: up to here a float holds every whole number

Task = Literal["t2v", "i2v", "ti2v", "vace"]
Version = Literal["2.1", "2.2"]
# integers stay integers, so that keys and files of 0.1.0 do not change
Guidance = (
    Annotated[int, Meta(ge=-MAX_SCALE, le=MAX_SCALE)]
    | Annotated[float, Meta(ge=-MAX_SCALE, le=MAX_SCALE)]
)
Shift = Annotated[int, Meta(gt=0, le=MAX_SCALE)] | Annotated[float, Meta(gt=0, le=MAX_SCALE)]

Timesteps = Annotated[
    tuple[Annotated[float, Meta(gt=0, le=1000)], ...], Meta(min_length=1, max_length=1000)
]


class Defaults(Document, frozen=True, kw_only=True):
    """Default settings of a run. `guide_scale` is (low noise, high noise). Only distilled models
    have a solver and timesteps.
    """

    width: Annotated[int, Meta(gt=0, le=geometry.MAX_SIDE)]
    height: Annotated[int, Meta(gt=0, le=geometry.MAX_SIDE)]
    num_frames: Annotated[int, Meta(gt=0, le=geometry.MAX_FRAMES)]
    fps: Annotated[int, Meta(gt=0, le=240)]
    steps: Annotated[int, Meta(gt=0, le=1000)]
    guide_scale: tuple[Guidance, Guidance]
    shift: Shift
    negative_prompt: Annotated[str, Meta(max_length=1 << 17, pattern=r"^[^\0]*\Z")]
    # the high-noise expert runs from this fraction of 1000 timesteps on
    boundary: Annotated[float, Meta(gt=0, lt=1)] | None = None
    scheduler: Literal["unipc", "dpm++", "euler", "lcm"] | UnsetType = UNSET
    timesteps: Timesteps | UnsetType = UNSET


class Variant(Document, frozen=True, kw_only=True):
    """One model of the Wan family: its name, VAE version, task and official defaults, and the
    `model_type` of its official config.json.
    """

    name: str
    version: Version
    task: Task
    defaults: Defaults
    model_type: str


NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


def _variant(
    name: str,
    size: tuple[int, int],
    steps: int,
    guide: float | tuple[float, float],
    shift: float,
    prefix: str = "",
    **more: Any,
) -> Variant:
    _, kind, *_ = name.split("-")
    low, high = guide if isinstance(guide, tuple) else (guide, guide)
    values = {"num_frames": 81, "fps": 16, "negative_prompt": prefix + NEGATIVE, **more}
    defaults = Defaults(
        width=size[0], height=size[1], steps=steps, guide_scale=(low, high), shift=shift, **values
    )
    return Variant(
        name=name,
        version=name[3:6],  # type: ignore[arg-type]
        task="i2v" if kind == "flf2v" else kind,  # type: ignore[arg-type]
        defaults=defaults,
        model_type=kind,
    )


SHAKY = "镜头晃动，"  # "shaky camera": Wan2.1 I2V prepends it to the negative prompt
CUTS = "镜头切换，"  # "cuts": FLF2V prepends it to that of I2V
# Source: wan/configs in the Wan2.1 and Wan2.2 repositories, but 40 steps for TI2V-5B, not 50;
# VACE-Fun-A14B has the settings of T2V-A14B, and 3.5 for both experts
VARIANTS = {
    variant.name: variant
    for variant in (
        _variant("wan2.1-t2v-1.3b", (832, 480), 50, 5.0, 5.0),
        _variant("wan2.1-t2v-14b", (1280, 720), 50, 5.0, 5.0),
        _variant("wan2.1-i2v-14b-480p", (832, 480), 40, 5.0, 3.0, SHAKY),
        _variant("wan2.1-i2v-14b-720p", (1280, 720), 40, 5.0, 5.0, SHAKY),
        _variant("wan2.1-flf2v-14b-720p", (1280, 720), 50, 5.0, 16.0, CUTS + SHAKY),
        _variant("wan2.1-vace-1.3b", (832, 480), 50, 5.0, 16.0),
        _variant("wan2.1-vace-14b", (1280, 720), 50, 5.0, 16.0),
        _variant("wan2.2-t2v-a14b", (1280, 720), 40, (3.0, 4.0), 12.0, boundary=0.875),
        _variant("wan2.2-i2v-a14b", (1280, 720), 40, (3.5, 3.5), 5.0, boundary=0.9),
        _variant("wan2.2-vace-fun-a14b", (1280, 720), 40, (3.5, 3.5), 12.0, boundary=0.875),
        _variant("wan2.2-ti2v-5b", (1280, 704), 40, 5.0, 5.0, num_frames=121, fps=24),
    )
}
# of models for FastVideo's WanDMDPipeline, such as FastWan. Their timesteps are those after the
# shift, so there is none here. Source: FastVideo, fastvideo/configs/pipelines/wan.py,
# `FastWan2_1_T2V_480P_Config`; stages/denoising.py, `DmdDenoisingStage`
DMD: dict[str, Any] = {
    "steps": 3,
    "guide_scale": (1.0, 1.0),
    "shift": 1.0,
    "scheduler": "lcm",
    "timesteps": (1000.0, 757.0, 522.0),
}
