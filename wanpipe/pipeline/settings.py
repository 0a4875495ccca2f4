"""What a denoising run is: what is asked for, and what is left open and follows from the rest.

Refuses what cannot be right before any weight is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from wanpipe.errors import UsageError
from wanpipe.models import geometry
from wanpipe.models.config import ModelConfig
from wanpipe.pipeline.sources import Sources
from wanpipe.runtime.documents import DocumentError, convert, plain
from wanpipe.sampling import SOLVERS
from wanpipe.sampling.easy_cache import MIN_STEPS
from wanpipe.sampling.schedule import Schedule
from wanpipe.store import Entry, Settings
from wanpipe.weights.model import Model

CHANGING = ("guide_scale", "loras", "step_cache")  # what may differ from one step to the next
FIELDS = tuple(field.name for field in structs.fields(Settings))


@dataclass(frozen=True, kw_only=True)
class Params:
    """How to denoise; what is None follows from the step gone on from, else from the model, and
    `memory` (bytes) from the device.

    `guide_scale` is one number or (low noise, high noise), `timesteps` an explicit grid before the
    shift, `step_cache` the change up to which a velocity is reused (0: never).
    """

    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    steps: int | None = None
    guide_scale: tuple[float, ...] | None = None
    shift: float | None = None
    scheduler: str | None = None
    timesteps: tuple[float, ...] | None = None
    step_cache: float | None = None
    seeds: tuple[int, ...] = ()
    noise: Path | None = None
    stop_at: int | None = None
    memory: int | None = None
    trim_first_frames: int | None = None
    lora: tuple[tuple[Path, float], ...] = ()
    lora_high: tuple[tuple[Path, float], ...] = ()
    lora_low: tuple[tuple[Path, float], ...] = ()


def schedule_of(settings: Settings) -> Schedule:
    """The timesteps and sigmas of a run. Raises UsageError where steps or shift cannot be right."""
    solver = SOLVERS[settings.scheduler]
    schedule: Schedule = solver.schedule(settings.steps, settings.shift, settings.timesteps)
    return schedule


def latent_shape(settings: Settings, stride: geometry.Triple) -> geometry.Triple:
    """Latent frames, rows and columns (F, H, W) of a run, those to be trimmed included."""
    frames = settings.num_frames + 4 * settings.trim_first_frames
    return geometry.latent_shape(settings.width, settings.height, frames, stride)


def settle(model: Model, given: Sources, params: Params) -> Settings:
    """Settle every setting, from the run that is continued or else from the image and the model.

    Raises UsageError for a setting that cannot be right, or that the run settled otherwise.
    """
    asked = {
        name: getattr(params, name)
        for name in FIELDS
        if name not in CHANGING and getattr(params, name) is not None
    }
    if given.run is not None:
        settings = continued(given, asked)
    else:
        settings = begun(model, given.image, asked)
    if params.guide_scale is not None:
        pair = guide_pair(params.guide_scale, model.config)
        settings = structs.replace(settings, guide_scale=pair)
    if params.step_cache is not None:
        settings = structs.replace(settings, step_cache=float(params.step_cache) or None)
    if settings.scheduler not in SOLVERS:
        raise UsageError(f"scheduler must be {', '.join(SOLVERS)}, got {settings.scheduler}")
    check_step_cache(settings)
    check(model, given.image, settings)
    return cast(plain(settings))


def cast(values: dict[str, Any]) -> Settings:
    """Build settings with every number in its declared type: 5 and 5.0 are one guidance. Raises
    UsageError for what cannot be a setting.
    """
    try:
        return convert(values, Settings)
    except DocumentError as error:
        raise UsageError(f"a setting cannot be right: {error}") from error


def continued(given: Sources, asked: dict[str, Any]) -> Settings:
    """The settings of a run; grid and size cannot change under way, so asking for others fails."""
    run, step = given.run, given.step
    assert run is not None
    assert step is not None
    for name, value in asked.items():
        there = getattr(run.settings, name)
        if value != there:
            raise UsageError(
                f"{name.replace('_', '-')} of the run that step {step.key[:8]} belongs to is "
                f"{there}, got {value}; leave it out, or start from noise"
            )
    return run.settings


def begun(model: Model, image: Entry | None, asked: dict[str, Any]) -> Settings:
    """What a run from noise takes: what is asked, else the image's canvas, else the defaults."""
    defaults = plain(model.config.defaults)
    values = {name: value for name, value in defaults.items() if name in FIELDS}
    values["scheduler"] = "unipc"
    if image is not None:
        made = image.material
        values |= {"width": made.width, "height": made.height}
        if made.mode == "i2v":
            values["num_frames"] = made.num_frames - 4 * asked.get("trim_first_frames", 0)
    values |= asked
    geometry.check_frames(values["num_frames"])
    geometry.check_size(values["width"], values["height"], model.config.side_multiple)
    check_trim(values.get("trim_first_frames", 0))
    if values.get("timesteps"):
        values["steps"] = len(values["timesteps"])
        if asked.get("steps") not in (None, values["steps"]):
            raise UsageError(
                f"steps must be the number of timesteps where these are given, {values['steps']}, "
                f"got {asked['steps']}; leave --steps out"
            )
    # raises the exact reason for steps, shift and timesteps that cannot be
    SOLVERS[values["scheduler"]].schedule(values["steps"], values["shift"], values.get("timesteps"))
    return cast(values)


def check_trim(trim: int) -> None:
    """Raise UsageError for frames to trim that cannot be."""
    if trim < 0:
        raise UsageError(f"trim-first-frames must not be negative, got {trim}; use 0 or more")
    if trim > geometry.MAX_FRAMES:
        raise UsageError(
            f"trim-first-frames must be at most {geometry.MAX_FRAMES}, got {trim}; use 1 or 2"
        )


def check(model: Model, image: Entry | None, settings: Settings) -> None:
    """Raise UsageError for a size that the model cannot make or the image was not encoded for."""
    geometry.check_frames(settings.num_frames)
    geometry.check_size(settings.width, settings.height, model.config.side_multiple)
    if image is None:
        return
    made, size = image.material, (settings.width, settings.height)
    frames = settings.num_frames + 4 * settings.trim_first_frames
    if (made.width, made.height) != size:
        raise UsageError(
            f"image entry {image.key[:8]} is {made.width}x{made.height}, the video "
            f"{size[0]}x{size[1]}; encode the image at that size"
        )
    if made.mode == "i2v" and made.num_frames != frames:
        raise UsageError(
            f"image entry {image.key[:8]} is for {made.num_frames} frames, the video has "
            f"{frames}; encode the image with --num-frames {frames}"
        )


def check_step_cache(settings: Settings) -> None:
    """Raise UsageError for a threshold that cannot be right, and for too few steps."""
    threshold, steps = settings.step_cache, settings.steps
    if threshold is None:
        return
    if not 0 < threshold <= 1:
        raise UsageError(
            f"step-cache must be above 0 and at most 1, got {threshold:g}; use 0.02 to 0.1, or 0 "
            "to compute every step"
        )
    if steps < MIN_STEPS:
        grid = " in --timesteps" if settings.timesteps else ""
        raise UsageError(
            f"step-cache takes {MIN_STEPS} steps or more, since fewer differ too much to be "
            f"reused, got {steps}{grid}; leave --step-cache out"
        )


def guide_pair(scale: tuple[float, ...] | None, config: ModelConfig) -> tuple[float, float]:
    """Read --guide-scale for a model: one number for all steps, or LOW,HIGH for two experts."""
    if scale is None:
        return config.defaults.guide_scale
    if len(scale) == 1:
        return scale[0], scale[0]
    if len(scale) != 2 or len(config.experts) != 2:
        kind = "two experts" if len(config.experts) == 2 else "one expert"
        raise UsageError(
            f"guide-scale must be one number, or LOW,HIGH for two experts; {config.variant} has "
            f"{kind}, got {len(scale)} numbers"
        )
    return scale[0], scale[1]
