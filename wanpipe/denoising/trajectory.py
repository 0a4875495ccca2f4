"""Trajectories: the steps of one prompt and seed, planned from its start, and the run that records
them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import UnsetType, structs

from wanpipe.denoising.chain import PlannedStep, plan_steps
from wanpipe.denoising.request import Request
from wanpipe.denoising.start import Start
from wanpipe.pipeline.lineage import reference
from wanpipe.pipeline.plan import expected
from wanpipe.store import Entry, Run, Store, runs

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The missing steps of one request and seed, after the step `last`. None means after the start
    noise.

    `end` is the last requested step. It has no arrays if it does not exist yet.
    """

    request: Request
    run: Run
    steps: tuple[PlannedStep, ...]
    draw: "Callable[[], np.ndarray] | None"
    last: Entry | None
    end: Entry


Turn = tuple[PlannedStep, Trajectory]  # a step, and the trajectory that it belongs to


def plan_trajectory(request: Request, start: Start, store: Store) -> Trajectory:
    """Plan a trajectory up to `request.stop`, from its last step in the cache."""
    planned = plan_steps(request, start)
    run = name_run(request, start, [step.recipe.key for step in planned])
    wanted = tuple(planned[: request.stop - request.first])
    last, steps = request.step, wanted
    if store.remote is not None:
        store.remote.expect("denoise", [step.recipe.key for step in wanted])
    for index in reversed(range(len(wanted))):
        recipe = wanted[index].recipe
        if not store.must_compute(recipe) and (found := store.find(recipe.stage, recipe.key)):
            last, steps = found, wanted[index + 1 :]
            break
    end = expected(steps[-1].recipe, store) if steps else last
    assert end is not None, "a run has at least one step"
    return Trajectory(request=request, run=run, steps=steps, draw=start.draw, last=last, end=end)


def in_order(trajectories: Sequence[Trajectory]) -> list[Turn]:
    """Return all steps to take: first the high-noise steps of every trajectory."""

    def place(turn: Turn) -> int:
        step, trajectory = turn
        return -trajectory.request.model.config.experts.index(step.expert)

    turns = [(step, trajectory) for trajectory in trajectories for step in trajectory.steps]
    return sorted(turns, key=place)


def name_run(request: Request, start: Start, steps: list[str]) -> Run:
    """Return the run of these steps: the continued one, or a new one."""
    step, before, model = request.step, request.run, request.model
    noise = start.material
    seed = before.seed if before else noise.seed if noise else None
    new = Run(
        key="0" * 32,
        start=noise or (step.key if step else ""),
        first=request.first,
        steps=steps,
        inputs=request.roles,
        settings=request.settings,
        dtype=request.dtype,
        model=reference(model),
        seed=None if isinstance(seed, UnsetType) else seed,
        prompt=request.text.made.prompt,
        negative_prompt=request.text.made.negative_prompt,
        fps=float(model.config.defaults.fps),
        loras=request.lora_files,
        created=runs.now(),
    )
    if step is not None and before is not None:
        taken = before.steps[: before.steps.index(step.key) + 1]
        whole = structs.replace(new, start=before.start, first=before.first, steps=taken + steps)
        # wanpipe 0.1.0 recorded where the model lies, and no more
        known = structs.replace(whole.model, key=None, experts={})
        known = whole.model if before.model.key else known
        if runs.with_key(structs.replace(whole, model=known)).key == before.key or not steps:
            new = whole  # nothing changes: the run itself is continued
    return runs.with_key(new)
