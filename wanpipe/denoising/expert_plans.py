"""Chooses how to run each expert within the memory limit, on one device or several."""

from collections.abc import Sequence
from dataclasses import replace

from msgspec import UNSET

from wanpipe.backend.ways import Way, possible_ways
from wanpipe.denoising.chain import PlannedStep, passes_at
from wanpipe.denoising.request import Request
from wanpipe.denoising.trajectory import Turn
from wanpipe.pipeline.budget import ITEMSIZE, Expert, ExpertPlan, choose_plan
from wanpipe.store import Store


def plan_experts(
    turns: Sequence[Turn], store: Store, devices: int | None = None
) -> dict[str, ExpertPlan]:
    """Choose a memory plan for every expert that takes one of these steps, of requests that differ
    in their text only.

    It is the plan of each of several `devices`. Raises UsageError if --memory is less than any plan
    needs.
    """
    from wanpipe.backend.device import is_cuda
    from wanpipe.denoising.launched import group_of

    size, recommended = group_of(devices)
    first = dict[str, PlannedStep]()
    requests = dict[str, list[Request]]()
    for step, trajectory in turns:
        first.setdefault(step.expert, step)
        requests.setdefault(step.expert, []).append(trajectory.request)
    plans: dict[str, ExpertPlan] = {}
    for name, step in first.items():
        whole = size_expert(requests[name], step)
        ways = possible_ways(size, whole.passes, splits=is_cuda())
        possible = [plan for way in ways for plan in plans_of(whole, way)]
        # reading blocks from disk is slower than any way to divide the work
        possible.sort(key=lambda plan: plan.streamed)
        memory = requests[name][0].memory
        plans[name] = choose_plan(name, possible, memory, store.report, recommended)
    return plans


def plans_of(expert: Expert, way: Way) -> list[ExpertPlan]:
    """Return the plans of one device where several divide an expert's steps, the fastest first."""
    # with passes apart, that of the device with the longer text
    texts = (max(expert.texts),) if way.apart == 2 else expert.texts
    part = replace(expert, texts=texts, shares=way.shares)
    return [replace(plan, flops=expert.flops, way=way) for plan in part.plans()]


def size_expert(requests: Sequence[Request], step: PlannedStep) -> Expert:
    """Return the dimensions and sizes of the expert that takes a step of each of these requests.

    One at a time is computed, so the longest texts count.
    """
    request = requests[0]
    config, computed = request.model.config, ITEMSIZE[request.dtype]

    def tokens(name: str) -> int:
        return max(len(getattr(one.text.material, name)) for one in requests)

    return Expert(
        config=config.dit,
        bytes=request.model.component(step.expert).bytes,
        stored=computed if config.quantization else ITEMSIZE[config.dtype],
        computed=computed,
        texts=tuple(tokens(name) for name in passes_at(step.guide_scale)),
        nag=None if request.settings.nag is UNSET else tokens("negative"),
        latent=request.latent_shape,
        arrays=6 if step.cache_rule is not None else 4,
    )
