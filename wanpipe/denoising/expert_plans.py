"""Chooses how to run each expert of a request within the memory limit, on one device or several."""

from collections.abc import Sequence
from dataclasses import replace

from msgspec import UNSET

from wanpipe.backend.ways import Way, possible_ways
from wanpipe.denoising.chain import PlannedStep, passes_at
from wanpipe.denoising.request import Request
from wanpipe.pipeline.budget import ITEMSIZE, Expert, ExpertPlan, choose_plan
from wanpipe.store import Store


def plan_experts(
    request: Request, steps: Sequence[PlannedStep], store: Store, devices: int | None = None
) -> dict[str, ExpertPlan]:
    """Choose a memory plan for every expert that takes one of these steps.

    It is the plan of each of several `devices`. Raises UsageError if --memory is less than any plan
    needs.
    """
    from wanpipe.backend.device import is_cuda
    from wanpipe.denoising.launched import group_of

    size, recommended = group_of(devices)
    plans: dict[str, ExpertPlan] = {}
    for step in steps:
        if step.expert not in plans:
            whole = size_expert(request, step)
            ways = possible_ways(size, whole.passes, splits=is_cuda())
            possible = [plan for way in ways for plan in plans_of(whole, way)]
            # reading blocks from disk is slower than any way to divide the work
            possible.sort(key=lambda plan: plan.streamed)
            plans[step.expert] = choose_plan(
                step.expert, possible, request.memory, store.report, recommended
            )
    return plans


def plans_of(expert: Expert, way: Way) -> list[ExpertPlan]:
    """Return the plans of one device where several divide an expert's steps, the fastest first."""
    # with passes apart, that of the device with the longer text
    texts = (max(expert.texts),) if way.apart == 2 else expert.texts
    part = replace(expert, texts=texts, shares=way.shares)
    return [replace(plan, flops=expert.flops, way=way) for plan in part.plans()]


def size_expert(request: Request, step: PlannedStep) -> Expert:
    """Return the dimensions and sizes of the expert that takes a step."""
    config, computed = request.model.config, ITEMSIZE[request.dtype]
    text, nag = request.text.material, request.settings.nag
    return Expert(
        config=config.dit,
        bytes=request.model.component(step.expert).bytes,
        stored=computed if config.quantization else ITEMSIZE[config.dtype],
        computed=computed,
        texts=tuple(len(getattr(text, name)) for name in passes_at(step.guide_scale)),
        nag=None if nag is UNSET else len(text.negative),
        latent=request.latent_shape,
        arrays=6 if step.cache_rule is not None else 4,
    )
