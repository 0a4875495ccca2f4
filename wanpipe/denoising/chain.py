"""The chain of denoising steps. The key of a step follows from the previous step and its inputs.

Knows what a step's key is made of. Knows nothing of networks or arrays.
"""

from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType

from wanpipe.denoising.request import Request
from wanpipe.denoising.start import ALGORITHM, Start
from wanpipe.errors import UsageError
from wanpipe.models.config import HIGH, LOW, ModelConfig
from wanpipe.runtime.documents import to_builtins
from wanpipe.sampling import RENOISING, SOLVERS, easy_cache
from wanpipe.sampling.nag import Nag
from wanpipe.store import Entry, Recipe, key_of, material
from wanpipe.store.materials import Step

# if one of these differs from the step before, the network predicts other velocities
CONDITIONS = ("expert", "loras", "text", "image", "guide_scale", "video", "context_scale", "nag")


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A step before it is computed: its recipe, and the values that it runs with.

    `cache_rule` says when the step cache may reuse a velocity; None if it may not.
    """

    recipe: Recipe
    expert: str
    timestep: float
    guide_scale: float
    cache_rule: dict[str, Any] | None = None
    ends: bool = False  # it ends at sigma 0: the network always runs


def expert_at(config: ModelConfig, timestep: float) -> str:
    """Return the name of the expert for a timestep: high noise at or above the boundary.

    Follows `generate` of wan/text2video.py.
    """
    if len(config.experts) == 1:
        return config.experts[0]
    boundary = config.defaults.boundary
    assert boundary is not None
    return HIGH if timestep >= boundary * 1000 else LOW


def passes_at(guide_scale: float) -> tuple[str, ...]:
    """Return the text of each pass through the network: only the prompt at guidance 1."""
    return ("prompt",) if guide_scale == 1.0 else ("prompt", "negative")


def text_key(text: Entry, guide_scale: float, nag: Nag | UnsetType) -> str:
    """Return the key of the part of a text entry that a step uses.

    At guidance 1 without NAG, this is the entry's material without the negative prompt.
    """
    if nag is not UNSET or passes_at(guide_scale) != ("prompt",):
        return text.key
    return key_of(
        {name: value for name, value in to_builtins(text.material).items() if name != "negative"}
    )


def plan_steps(request: Request, start: Start) -> list[PlannedStep]:
    """Plan every step from `request.first` to the end of the schedule."""
    steps: list[PlannedStep] = []
    parent = request.step.key if request.step else None
    before: Step | None = request.step.material if request.step else None
    for number in range(request.first, request.schedule.steps):
        steps.append(plan_step(request, start, number, parent, before))
        parent, before = steps[-1].recipe.key, steps[-1].recipe.material
    return steps


def plan_step(
    request: Request, start: Start, number: int, parent: str | None, before: Step | None
) -> PlannedStep:
    """Plan one step after the step `parent`, whose material is `before`."""
    settings, schedule, model = request.settings, request.schedule, request.model
    timestep = schedule.timesteps[number]
    expert = expert_at(model.config, timestep)
    low, high = settings.guide_scale
    guide_scale = high if expert == HIGH else low
    order = SOLVERS[settings.scheduler].order(schedule, number)
    fields = {
        **({"parent": parent} if parent else {"noise": to_builtins(start.material)}),
        "expert": model.hash(expert),
        "loras": [[lora.hash, lora.strength] for lora in settings.loras_for(expert)],
        "text": text_key(request.text, guide_scale, settings.nag),
        "image": request.image.key if request.image else None,
        **video_fields(request, start=parent is None),
        "guide_scale": guide_scale,
        "solver": {"name": settings.scheduler, "order": order},
        "timestep": timestep,
        "sigma": schedule.sigmas[number],
        "sigma_next": schedule.sigmas[number + 1],
        "dtype": request.dtype,
        **noise_fields(request, start, number, before),
        **({} if settings.nag is UNSET else {"nag": to_builtins(settings.nag)}),
    }
    made: Step = material("denoise", **fields)
    inputs = dict(request.roles)
    if made.video is UNSET:
        inputs.pop("video", None)
    rule = None
    if settings.step_cache is not None:
        since = steps_since_reset(made, before)
        rule = easy_cache.rule(settings.step_cache, schedule.steps, since)
        made = material("denoise", **fields, step_cache=rule)  # absent without a step cache
    return PlannedStep(
        recipe=Recipe(material=made, inputs=inputs, step=number, parent=parent),
        expert=expert,
        timestep=timestep,
        guide_scale=guide_scale,
        cache_rule=rule,
        ends=schedule.sigmas[number + 1] == 0.0,
    )


def video_fields(request: Request, *, start: bool) -> dict[str, Any]:
    """Return the fields of a step that come from a video, if the step uses it.

    Of a video to change, only the first step does, unless a mask keeps a part.
    """
    video, scale = request.video, request.settings.context_scale
    if video is None or (request.changes_video and video.material.mask is None and not start):
        return {}
    return {"video": video.key} | ({} if scale is UNSET else {"context_scale": scale})


def noise_fields(
    request: Request, start: Start, number: int, before: Step | None
) -> dict[str, Any]:
    """Return the field of the noise that a step adds, if its solver draws noise.

    Raises UsageError without a seed to draw it from. The last step adds none.
    """
    scheduler = request.settings.scheduler
    if scheduler not in RENOISING or request.schedule.sigmas[number + 1] == 0.0:
        return {}
    drawn = start.material if before is None else before.step_noise
    if drawn is None or drawn is UNSET or drawn.seed is UNSET:
        raise UsageError(
            f"{scheduler} draws new noise at every step from the seed, but --noise gives the start "
            "noise without one; use --seed, or another --scheduler"
        )
    return {"step_noise": {"algorithm": ALGORITHM, "seed": drawn.seed, "stream": number + 1}}


def steps_since_reset(material: Step, before: Step | None) -> int:
    """Count the steps since the step cache was last empty.

    It is empty after a step without a step cache, and after a change of anything but the latent.
    """
    if before is None or isinstance(before.step_cache, UnsetType):
        return 0
    for name in CONDITIONS:
        if name == "video" and material.video is UNSET:
            continue  # that of the step before only began a changed video
        if getattr(material, name) != getattr(before, name):
            return 0
    return before.step_cache.since + 1
