"""The chain of denoising steps, planned before anything is computed: every step's key follows from
its inputs alone.

Knows the material of a step and nothing of networks or arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import UnsetType

from wanpipe.errors import UsageError
from wanpipe.models.config import ModelConfig
from wanpipe.pipeline.settings import schedule_of
from wanpipe.runtime.documents import convert, plain
from wanpipe.sampling import SOLVERS, easy_cache
from wanpipe.sampling.noise import draw as draw
from wanpipe.store import Entry, Recipe, Settings, key_of, material
from wanpipe.store.keys import hash_array
from wanpipe.store.schema import Noise, Step
from wanpipe.weights.model import Model

if TYPE_CHECKING:
    import numpy as np

NOISE_ALGORITHM = "numpy-philox-normal"
HIGH, LOW = "high_noise_model", "low_noise_model"
# where one of these differs from the step before, its velocity is another function of the latent
CONDITIONS = ("expert", "loras", "text", "image", "guide_scale")


def expert_at(config: ModelConfig, timestep: float) -> str:
    """Name the expert in charge: with two, high noise from the boundary up (`generate` of the
    official pipelines).
    """
    if len(config.experts) == 1:
        return config.experts[0]
    boundary = config.defaults.boundary
    assert boundary is not None
    return HIGH if timestep >= boundary * 1000 else LOW


def sides_at(guide_scale: float) -> tuple[str, ...]:
    """Name the texts that a step is taken under: with guidance 1 the negative prompt is skipped."""
    return ("prompt",) if guide_scale == 1.0 else ("prompt", "negative")


def text_key(text: Entry, guide_scale: float) -> str:
    """What names the text of a step: the key of its entry; at guidance 1, which skips the negative
    prompt, that of the entry's material without it.
    """
    if sides_at(guide_scale) != ("prompt",):
        return text.key
    return key_of(
        {name: value for name, value in plain(text.material).items() if name != "negative"}
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a chain is made from: a text entry, the key of an image entry, and its start: the noise,
    or the material of the step before, with its key, where `first` is not 0.
    """

    text: Entry
    image: str | None
    noise: Noise | None = None
    parent: str | None = None
    before: Step | None = None
    first: int = 0  # number of the first step to plan
    made: dict[str, Any] = field(default_factory=dict)


def plan(model: Model, settings: Settings, inputs: Inputs, dtype: str) -> list[Recipe]:
    """Give the recipe of every step from `inputs.first` on; each names the one before it."""
    schedule = schedule_of(settings)
    solver = SOLVERS[settings.scheduler]
    roles = {"text": inputs.text.key} | ({"image": inputs.image} if inputs.image else {})
    recipes: list[Recipe] = []
    parent, before = inputs.parent, inputs.before
    low, high = settings.guide_scale
    for step in range(inputs.first, schedule.steps):
        timestep = schedule.timesteps[step]
        expert = expert_at(model.config, timestep)
        guide_scale = high if expert == HIGH else low
        fields = {
            **({"parent": parent} if parent else {"noise": plain(inputs.noise)}),
            "expert": model.hash(expert),
            "loras": [[lora.hash, lora.strength] for lora in settings.acting(expert)],
            "text": text_key(inputs.text, guide_scale),
            "image": inputs.image,
            "guide_scale": guide_scale,
            "solver": {"name": settings.scheduler, "order": solver.order(schedule, step)},
            "timestep": timestep,
            "sigma": schedule.sigmas[step],
            "sigma_next": schedule.sigmas[step + 1],
            "dtype": dtype,
        }
        made: Step = material("denoise", **fields)
        if settings.step_cache is not None:
            since = since_reset(made, before)
            rule = easy_cache.rule(settings.step_cache, schedule.steps, since)
            made = material("denoise", **fields, step_cache=rule)  # absent otherwise
        recipe = Recipe(material=made, inputs=roles, step=step, parent=parent, made=inputs.made)
        recipes.append(recipe)
        parent, before = recipe.key, made
    return recipes


def since_reset(material: Step, before: Step | None) -> int:
    """Count the steps since the step cache was last empty, from the material of the step before,
    planned or long done: 0 where that kept none, or something but the latent changes now.
    """
    if before is None or isinstance(before.step_cache, UnsetType):
        return 0
    if any(getattr(material, name) != getattr(before, name) for name in CONDITIONS):
        return 0
    return before.step_cache.since + 1


def noise_of_seed(seed: int, shape: Sequence[int], trim: int) -> Noise:
    """What names the start noise of a seed. Raises UsageError for a seed that cannot be."""
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}; use 0 or more")
    drawn = {"algorithm": NOISE_ALGORITHM, "seed": seed, "shape": list(shape)}
    return convert(drawn | trimmed(trim), Noise)


def noise_of_array(array: "np.ndarray", trim: int) -> Noise:
    """What names a start noise that was given as an array."""
    given = {"algorithm": "given", "digest": hash_array(array), "shape": list(array.shape)}
    return convert(given | trimmed(trim), Noise)


def trimmed(trim: int) -> dict[str, int]:
    """The frames to trim, which are part of what names a noise where there are any."""
    return {"trim_first_frames": trim} if trim else {}
