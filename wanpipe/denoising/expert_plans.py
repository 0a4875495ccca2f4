"""Chooses how to run each expert of a request within the memory limit, on one device or several."""

from collections.abc import Sequence
from dataclasses import replace

from wanpipe.denoising.chain import PlannedStep, texts_at
from wanpipe.denoising.request import Request
from wanpipe.denoising.ways import Way, choose_way
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
            way = choose_way(size, whole.passes, splits=is_cuda())
            possible = [
                replace(plan, flops=whole.flops, devices=size, way=way.words)
                for plan in part_of(whole, way).plans()
            ]
            plans[step.expert] = choose_plan(
                step.expert, possible, request.memory, store.report, recommended
            )
    return plans


def part_of(expert: Expert, way: Way) -> Expert:
    """Return what one device computes of an expert's step: the longer text, if passes are apart."""
    texts = (max(expert.texts),) if way.apart == 2 else expert.texts
    return replace(expert, texts=texts, shares=way.shares)


def size_expert(request: Request, step: PlannedStep) -> Expert:
    """Return the dimensions and sizes of the expert that takes a step."""
    config, computed = request.model.config, ITEMSIZE[request.dtype]
    text = request.text.material
    return Expert(
        config=config.dit,
        bytes=request.model.component(step.expert).bytes,
        stored=computed if config.quantization else ITEMSIZE[config.dtype],
        computed=computed,
        texts=tuple(len(getattr(text, name)) for name in texts_at(step.guide_scale)),
        latent=request.latent_shape,
        arrays=6 if step.cache_rule is not None else 4,
    )
