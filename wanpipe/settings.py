"""What a denoising run is: what is asked for, and what is left open and follows from the rest.

Refuses what cannot be right before any weight is loaded.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from wanpipe import geometry
from wanpipe.config import ModelConfig, Strict
from wanpipe.errors import UsageError
from wanpipe.model import Model
from wanpipe.sampling import SOLVERS
from wanpipe.sampling.schedule import Schedule
from wanpipe.sampling.step_cache import LEAST_STEPS
from wanpipe.sources import Sources
from wanpipe.store import Entry

CHANGING = ("guide_scale", "loras", "step_cache")  # what may differ from one step to the next


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


@dataclass(frozen=True, kw_only=True)
class Lora(Strict):
    """A LoRA in use: name and content hash of its file, and the expert it is for; None: all."""

    name: str
    hash: str
    strength: float
    expert: str | None = None


@dataclass(frozen=True, kw_only=True)
class Settings(Strict):
    """What a run is. Every step remembers it under `made`, so that a run can be finished from any
    of its steps.

    `guide_scale` is (low noise, high noise); `num_frames` is what the film will have, without the
    trimmed ones. Where the files of the LoRAs lie is noted apart, under `lora_files`.
    """

    width: int
    height: int
    num_frames: int
    steps: int
    guide_scale: tuple[float, float]
    shift: float
    scheduler: str
    timesteps: tuple[float, ...] | None = None
    trim_first_frames: int = 0
    step_cache: float | None = None
    loras: tuple[Lora, ...] = ()

    @classmethod
    def from_json(cls, data: Any, subject: str) -> Self:
        """Build from a decoded JSON object. Raises CheckpointError for unknown or missing keys."""
        settings = super().from_json(data, subject)
        loras = tuple(Lora.from_json(one, f"{subject}: loras") for one in settings.loras)
        return replace(settings, loras=loras)

    def acting(self, expert: str) -> list[Lora]:
        """The LoRAs that an expert gets, in the order in which they are added."""
        return [lora for lora in self.loras if lora.expert in (None, expert)]

    def latent_shape(self, stride: geometry.Triple) -> geometry.Triple:
        """Latent frames, rows and columns (F, H, W), those to be trimmed included."""
        frames = self.num_frames + 4 * self.trim_first_frames
        return geometry.latent_shape(self.width, self.height, frames, stride)

    def schedule(self) -> Schedule:
        """The timesteps and sigmas of this run."""
        solver = SOLVERS[self.scheduler]
        schedule: Schedule = solver.schedule(self.steps, self.shift, self.timesteps)
        return schedule


def settle(model: Model, given: Sources, params: Params) -> Settings:
    """Settle every setting, from the step gone on from or else from the image and the model.

    Raises UsageError for a setting that cannot be right, or that the step settled otherwise.
    """
    asked = {
        field.name: getattr(params, field.name)
        for field in fields(Settings)
        if field.name not in CHANGING and getattr(params, field.name) is not None
    }
    if given.step is not None:
        settings = continued(given.step, asked)
    else:
        settings = begun(model, given.image, asked)
    if params.guide_scale is not None:
        settings = replace(settings, guide_scale=guide_pair(params.guide_scale, model.config))
    if params.step_cache is not None:
        settings = replace(settings, step_cache=float(params.step_cache) or None)
    check_step_cache(settings)
    check(model, given.image, settings)
    return settings


def continued(step: Entry, asked: dict[str, Any]) -> Settings:
    """What a step remembers; grid and size cannot change under way, so asking for others fails."""
    settings = Settings.from_json(step.made["settings"], f"settings of step {step.key[:8]}")
    for name, value in asked.items():
        there = getattr(settings, name)
        if value != there:
            raise UsageError(
                f"{name.replace('_', '-')} of the run that step {step.key[:8]} belongs to is "
                f"{there}, got {value}; leave it out, or start from noise"
            )
    return settings


def begun(model: Model, image: Entry | None, asked: dict[str, Any]) -> Settings:
    """What a run from noise takes: what is asked, else the image's canvas, else the defaults."""
    defaults = model.config.defaults.to_json()
    names = {field.name for field in fields(Settings)}
    values = {name: value for name, value in defaults.items() if name in names}
    values["scheduler"] = "unipc"
    if image is not None:
        made = image.material
        values |= {"width": made["width"], "height": made["height"]}
        if made["mode"] == "i2v":
            values["num_frames"] = made["num_frames"] - 4 * asked.get("trim_first_frames", 0)
    values |= asked
    if values.get("timesteps"):
        values["steps"] = len(values["timesteps"])
        if asked.get("steps") not in (None, values["steps"]):
            raise UsageError(
                f"steps must be the number of timesteps where these are given, {values['steps']}, "
                f"got {asked['steps']}; leave --steps out"
            )
    return Settings.from_json(values, "settings")


def check(model: Model, image: Entry | None, settings: Settings) -> None:
    """Raise UsageError for a size that the model cannot make or the image was not encoded for."""
    geometry.check_frames(settings.num_frames)
    geometry.check_size(settings.width, settings.height, model.config.side_multiple)
    if settings.trim_first_frames < 0:
        trim = settings.trim_first_frames
        raise UsageError(f"trim-first-frames must not be negative, got {trim}; use 0 or more")
    if image is None:
        return
    made, size = image.material, (settings.width, settings.height)
    frames = settings.num_frames + 4 * settings.trim_first_frames
    if (made["width"], made["height"]) != size:
        raise UsageError(
            f"image entry {image.key[:8]} is {made['width']}x{made['height']}, the video "
            f"{size[0]}x{size[1]}; encode the image at that size"
        )
    if made["mode"] == "i2v" and made["num_frames"] != frames:
        raise UsageError(
            f"image entry {image.key[:8]} is for {made['num_frames']} frames, the video has "
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
    if steps < LEAST_STEPS:
        grid = " in --timesteps" if settings.timesteps else ""
        raise UsageError(
            f"step-cache takes {LEAST_STEPS} steps or more, since fewer differ too much to be "
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
