"""Chooses how to run each expert of a request within the memory limit."""

from collections.abc import Sequence

from wanpipe.denoising.chain import PlannedStep, texts_at
from wanpipe.denoising.request import Request
from wanpipe.pipeline.budget import ITEMSIZE, Expert, ExpertPlan, choose_plan
from wanpipe.store import Store


def plan_experts(
    request: Request, steps: Sequence[PlannedStep], store: Store
) -> dict[str, ExpertPlan]:
    """Choose a memory plan for every expert that takes one of these steps.

    Raises UsageError if --memory is less than any plan needs.
    """
    plans: dict[str, ExpertPlan] = {}
    for step in steps:
        if step.expert not in plans:
            possible = size_expert(request, step).plans()
            plans[step.expert] = choose_plan(step.expert, possible, request.memory, store.report)
    return plans


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
