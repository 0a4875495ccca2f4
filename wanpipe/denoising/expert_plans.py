"""How each expert of a request is run within the memory."""

from collections.abc import Sequence

from wanpipe.denoising.chain import PlannedStep, texts_at
from wanpipe.denoising.request import Request
from wanpipe.pipeline.budget import ITEMSIZE, Expert, ExpertNeed, choose
from wanpipe.store import Store


def plan_experts(
    request: Request, steps: Sequence[PlannedStep], store: Store
) -> dict[str, ExpertNeed]:
    """Choose a memory plan for every expert that takes one of these steps.

    Raises UsageError if --memory is less than any plan needs.
    """
    needs: dict[str, ExpertNeed] = {}
    for step in steps:
        if step.expert not in needs:
            ways = size_expert(request, step).ways()
            needs[step.expert] = choose(step.expert, ways, request.memory, store.report)
    return needs


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
