"""The chain of denoising steps, planned before anything is computed: every step's key follows from
its inputs alone.

Knows the material of a step and nothing of networks or arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanpipe.config import ModelConfig
from wanpipe.errors import UsageError
from wanpipe.model import Model
from wanpipe.sampling import SOLVERS, step_cache
from wanpipe.sampling.noise import draw as draw
from wanpipe.settings import Settings
from wanpipe.store import Recipe
from wanpipe.store.keys import hash_array

if TYPE_CHECKING:
    import numpy as np

ALGORITHM = 1
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


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Keys of what a chain is made from; `start` is the noise (an object) or the key of the step it
    goes on from, and `before` the material of that step.
    """

    text: str
    image: str | None
    start: dict[str, Any] | str
    before: dict[str, Any] | None = None
    first: int = 0  # index of the first step to plan


def plan(
    model: Model, settings: Settings, inputs: Inputs, dtype: str, made: dict[str, Any] | None = None
) -> list[Recipe]:
    """Give the recipe of every step from `inputs.first` on; each names the one before it."""
    schedule = settings.schedule()
    solver = SOLVERS[settings.scheduler]
    roles = {"text": inputs.text} | ({"image": inputs.image} if inputs.image else {})
    recipes: list[Recipe] = []
    before: dict[str, Any] | str = inputs.start
    earlier = inputs.before
    for step in range(inputs.first, len(schedule.timesteps)):
        timestep = schedule.timesteps[step]
        expert = expert_at(model.config, timestep)
        low, high = settings.guide_scale
        material: dict[str, Any] = {
            ("parent" if isinstance(before, str) else "noise"): before,
            "expert": model.hash(expert),
            "loras": [[lora.hash, lora.strength] for lora in settings.acting(expert)],
            "text": inputs.text,
            "image": inputs.image,
            "guide_scale": high if expert == HIGH else low,
            "solver": {"name": settings.scheduler, "order": solver.order(schedule, step)},
            "timestep": timestep,
            "sigma": schedule.sigmas[step],
            "sigma_next": schedule.sigmas[step + 1],
            "dtype": dtype,
        }
        if settings.step_cache is not None:
            since = since_reset(material, earlier)
            rule = step_cache.rule(settings.step_cache, schedule.steps, since)
            material["step_cache"] = rule  # absent otherwise: keys without it stay as they are
        parent = before if isinstance(before, str) else None
        recipe = Recipe(
            stage="denoise",
            algorithm=ALGORITHM,
            material=material,
            inputs=roles,
            extra={"step": step, "parent": parent},
            made=made or {},
        )
        recipes.append(recipe)
        before, earlier = recipe.key, material
    return recipes


def since_reset(material: dict[str, Any], before: dict[str, Any] | None) -> int:
    """Count the steps since the step cache was last empty, from the material of the step before,
    planned or long done: 0 where that kept none, or something but the latent changes now.
    """
    if before is None or "step_cache" not in before:
        return 0
    if any(material[name] != before[name] for name in CONDITIONS):
        return 0
    since: int = before["step_cache"]["since"] + 1
    return since


def noise_material(seed: int, shape: Sequence[int]) -> dict[str, Any]:
    """What names the start noise of a seed. Raises UsageError for a negative seed."""
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}; use 0 or more")
    return {"algorithm": NOISE_ALGORITHM, "seed": seed, "shape": list(shape)}


def array_material(array: "np.ndarray") -> dict[str, Any]:
    """What names a start noise that was given as an array."""
    return {"algorithm": "given", "digest": hash_array(array), "shape": list(array.shape)}
