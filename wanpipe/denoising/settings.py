"""The settings of a denoising run: the given ones, and defaults for the rest.

Refuses invalid settings before any weight is loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType, structs

from wanpipe.errors import UsageError
from wanpipe.models import geometry
from wanpipe.models.config import ModelConfig
from wanpipe.pipeline.inputs import MODES, Inputs
from wanpipe.runtime.documents import DocumentError, convert, to_builtins
from wanpipe.sampling import RENOISING, SOLVERS, nag
from wanpipe.sampling.easy_cache import MIN_STEPS
from wanpipe.sampling.schedule import Schedule
from wanpipe.store import Entry, Settings
from wanpipe.store.runs import CHANGING, DERIVED
from wanpipe.weights.model import Model

FIELDS = tuple(field.name for field in structs.fields(Settings) if field.name not in DERIVED)
STRENGTH, CONTEXT_SCALE = 0.8, 1.0  # by default, as in diffusers and in the official code
MAX_CONTEXT_SCALE = 10
NAG_SCALE = 11  # to recommend


@dataclass(frozen=True, kw_only=True)
class Params:
    """How to denoise. None means the setting of the continued run, or else the model's default.

    `guide_scale` is one number or (low noise, high noise). `timesteps` is an explicit schedule
    before the shift. `step_cache` is the change up to which a velocity is reused (0: never).
    `strength` is the part of the steps that change a video, and `context_scale` the weight of
    VACE's context. `nag`, `nag_tau` and `nag_alpha` are those of normalized attention guidance,
    which a scale of 1 turns off. `memory` is in bytes; None means what the device recommends.
    `devices` is how many devices of this host compute each step; None means those of the group that
    mlx.launch has started, or one.
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
    devices: int | None = None
    trim_first_frames: int | None = None
    strength: float | None = None
    context_scale: float | None = None
    nag: float | None = None
    nag_tau: float | None = None
    nag_alpha: float | None = None
    lora: tuple[tuple[Path, float], ...] = ()
    lora_high: tuple[tuple[Path, float], ...] = ()
    lora_low: tuple[tuple[Path, float], ...] = ()

    def __post_init__(self) -> None:
        """Raise UsageError for a number out of range, before a long video is read."""
        strength, scale = self.strength, self.context_scale
        if strength is not None and not 0 < strength <= 1:
            raise UsageError(
                f"strength must be above 0 and at most 1, got {strength:g}; use 0.5 to 0.9"
            )
        if scale is not None and not 0 <= scale <= MAX_CONTEXT_SCALE:
            raise UsageError(
                f"context-scale must be 0 to {MAX_CONTEXT_SCALE}, got {scale:g}; use 0.5 to 1"
            )
        self.check_nag()

    def check_nag(self) -> None:
        """Raise UsageError for a number of normalized attention guidance out of range."""
        scale, tau, alpha = self.nag, self.nag_tau, self.nag_alpha
        if scale is not None and not 1 <= scale <= nag.MAX_SCALE:
            raise UsageError(
                f"nag must be 1 (off) to {nag.MAX_SCALE:g}, got {scale:g}; use {NAG_SCALE}"
            )
        if tau is not None and not 0 < tau <= nag.MAX_TAU:
            raise UsageError(
                f"nag-tau must be above 0 and at most {nag.MAX_TAU:g}, got {tau:g}; use {nag.TAU}"
            )
        if alpha is not None and not 0 <= alpha <= 1:
            raise UsageError(f"nag-alpha must be 0 to 1, got {alpha:g}; use {nag.ALPHA}")


def schedule_of(settings: Settings) -> Schedule:
    """Return the timesteps and sigmas of a run. Raises UsageError for invalid steps or shift."""
    solver = SOLVERS[settings.scheduler]
    schedule: Schedule = solver.schedule(settings.steps, settings.shift, settings.timesteps)
    return schedule if settings.strength is UNSET else schedule.last_part(settings.strength)


def resolve_settings(model: Model, inputs: Inputs, params: Params) -> Settings:
    """Complete the settings from the continued run, or from the image and the model.

    Raises UsageError for an invalid setting, or for one that the run cannot change.
    """
    asked = {
        name: getattr(params, name)
        for name in FIELDS
        if name not in CHANGING and getattr(params, name) is not None
    }
    if inputs.run is not None:
        settings = settings_of_run(inputs, asked)
    else:
        settings = settings_from_noise(model, inputs, asked)
    if params.guide_scale is not None:
        pair = guide_pair(params.guide_scale, model.config)
        settings = structs.replace(settings, guide_scale=pair)
    if params.step_cache is not None:
        settings = structs.replace(settings, step_cache=float(params.step_cache) or None)
    if params.context_scale is not None:
        check_has_context(model.config)
        settings = structs.replace(settings, context_scale=params.context_scale)
    settings = structs.replace(settings, nag=choose_nag(settings.nag, params))
    if settings.scheduler not in SOLVERS:
        raise UsageError(f"scheduler must be {', '.join(SOLVERS)}, got {settings.scheduler}")
    check_step_cache(settings)
    check_size(model, inputs, settings)
    return cast(to_builtins(settings))


def choose_nag(before: nag.Nag | UnsetType, params: Params) -> nag.Nag | UnsetType:
    """Return normalized attention guidance: that of the run so far, with what is given.

    Raises UsageError for another of its options without a scale.
    """
    asked = {"scale": params.nag, "tau": params.nag_tau, "alpha": params.nag_alpha}
    given = {name: float(value) for name, value in asked.items() if value is not None}
    if not given:
        return before
    if params.nag == 1:  # then the guided attention is that of the prompt
        return UNSET
    if params.nag is None and before is UNSET:
        raise UsageError(
            f"nag-tau and nag-alpha belong to --nag, which is not given; use --nag {NAG_SCALE}"
        )
    return nag.Nag(**({} if before is UNSET else to_builtins(before)) | given)


def cast(values: dict[str, Any]) -> Settings:
    """Build settings with every number in its declared type, so that 5 and 5.0 are the same.

    Raises UsageError for an invalid value.
    """
    try:
        return convert(values, Settings)
    except DocumentError as error:
        raise UsageError(f"a setting is invalid: {error}") from error


def settings_of_run(inputs: Inputs, asked: dict[str, Any]) -> Settings:
    """Return the settings of a run.

    Raises UsageError for another schedule or size: these cannot change within a run.
    """
    run, step = inputs.run, inputs.step
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


def settings_from_noise(model: Model, inputs: Inputs, asked: dict[str, Any]) -> Settings:
    """Return the given settings, completed with those of the image or video, and the defaults."""
    defaults = to_builtins(model.config.defaults)
    values = {name: value for name, value in defaults.items() if name in FIELDS}
    values.setdefault("scheduler", "unipc")
    if "timesteps" not in asked and asked.keys() & {"steps", "shift"}:
        values.pop("timesteps", None)  # of a distilled model
    given = inputs.image or inputs.video
    if given is not None:
        made = given.material
        values |= {"width": made.width, "height": made.height}
        if made.mode != "ti2v":
            values["num_frames"] = made.num_frames - 4 * asked.get("trim_first_frames", 0)
    values |= video_settings(model.config, inputs.video, asked) | asked
    geometry.check_frames(values["num_frames"])
    geometry.check_size(values["width"], values["height"], model.config.side_multiple)
    check_trim(values.get("trim_first_frames", 0), values["num_frames"])
    if values.get("timesteps"):
        values["steps"] = len(values["timesteps"])
        if asked.get("steps") not in (None, values["steps"]):
            raise UsageError(
                f"steps must be the number of timesteps where these are given, {values['steps']}, "
                f"got {asked['steps']}; leave --steps out"
            )
    # raises the exact reason if steps, shift or timesteps are invalid
    SOLVERS[values["scheduler"]].schedule(values["steps"], values["shift"], values.get("timesteps"))
    return cast(values)


def video_settings(
    config: ModelConfig, video: Entry | None, asked: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings that only a video entry has.

    Raises UsageError for one that is asked for without its kind of video.
    """
    mode = None if video is None else video.material.mode
    strength = asked.get("strength")
    if strength is not None and "v2v" not in MODES[config.task]:
        raise UsageError(
            "strength is for text-to-video models, which change a video, but "
            f"{config.variant} is none; leave it out"
        )
    if strength is not None and mode != "v2v":
        raise UsageError(
            "strength is how much of a video is changed, but no video to change is given; make an "
            "entry of one with `wanpipe encode-video --video FILE`, or leave --strength out"
        )
    if mode == "v2v":
        return {"strength": STRENGTH}
    if mode != "vace":
        return {}
    assert video is not None
    references = len(video.material.references)
    return {"context_scale": CONTEXT_SCALE} | (
        {"reference_frames": references} if references else {}
    )


def check_has_context(config: ModelConfig) -> None:
    """Raise UsageError for a model without a context."""
    if config.task != "vace":
        raise UsageError(
            f"context-scale is for VACE, but {config.variant} has no context; leave it out"
        )


def check_trim(trim: int, num_frames: int) -> None:
    """Raise UsageError for an invalid number of frames to trim."""
    if trim < 0:
        raise UsageError(f"trim-first-frames must not be negative, got {trim}; use 0 or more")
    if num_frames + 4 * trim > geometry.MAX_FRAMES:
        raise UsageError(
            f"trim-first-frames must leave at most {geometry.MAX_FRAMES} frames to generate, got "
            f"{trim}, which makes {num_frames + 4 * trim}; use 1 or 2"
        )


def check_size(model: Model, inputs: Inputs, settings: Settings) -> None:
    """Raise UsageError for a size that the model cannot make, or another one than that of the
    image or video.
    """
    geometry.check_frames(settings.num_frames)
    geometry.check_size(settings.width, settings.height, model.config.side_multiple)
    given = inputs.image or inputs.video
    if given is None:
        return
    made, size = given.material, (settings.width, settings.height)
    what = "image" if given is inputs.image else "video"
    frames = settings.num_frames + 4 * settings.trim_first_frames
    if (made.width, made.height) != size:
        raise UsageError(
            f"{what} entry {given.key[:8]} is {made.width}x{made.height}, the video to make "
            f"{size[0]}x{size[1]}; encode the {what} at that size"
        )
    if made.mode != "ti2v" and made.num_frames != frames:
        raise UsageError(
            f"{what} entry {given.key[:8]} is for {made.num_frames} frames, the video to make has "
            f"{frames}; encode the {what} with --num-frames {frames}"
        )
    if made.mode == "ti2v" and what == "video" and made.num_frames >= frames:
        raise UsageError(
            f"{what} entry {given.key[:8]} has {made.num_frames} known frames, so the video to "
            f"make must have more, got {frames}; use a greater --num-frames"
        )


def check_step_cache(settings: Settings) -> None:
    """Raise UsageError for an invalid threshold, or for too few steps."""
    threshold, steps = settings.step_cache, settings.steps
    if threshold is None:
        return
    if settings.scheduler in RENOISING:
        raise UsageError(
            f"step-cache reuses the velocity of the last latent, but {settings.scheduler} adds new "
            "noise at every step; leave --step-cache out"
        )
    if not 0 < threshold <= 1:
        raise UsageError(
            f"step-cache must be above 0 and at most 1, got {threshold:g}; use 0.02 to 0.1, or 0 "
            "to compute every step"
        )
    if steps < MIN_STEPS:
        grid = " in --timesteps" if settings.timesteps else ""
        raise UsageError(
            f"step-cache needs {MIN_STEPS} steps or more, because fewer differ too much to be "
            f"reused, got {steps}{grid}; leave --step-cache out"
        )


def guide_pair(scale: tuple[float, ...] | None, config: ModelConfig) -> tuple[float, float]:
    """Return guidance (low noise, high noise) from --guide-scale: one number, or LOW,HIGH."""
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
