"""denoise: denoise a latent, and save an entry for every step.

Reads: text entries, an image or video entry if the model takes one, or a step to continue; a
model's transformers.
Writes: for every step `latent`, `x0` (C, F, H, W) and `solver/*`, which with --step-cache includes
the state of the step cache; the record of the run.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import click

from wanpipe.cli import options
from wanpipe.cli.seeds import choose_seeds
from wanpipe.cli.session import Session, stage_options
from wanpipe.denoising.expert_plans import plan_experts
from wanpipe.denoising.launched import check_devices, serves_another
from wanpipe.denoising.loras import match_loras
from wanpipe.denoising.request import resolve_request
from wanpipe.denoising.sampler import Sampler
from wanpipe.denoising.settings import Params as Params
from wanpipe.denoising.start import starts
from wanpipe.denoising.trajectory import in_order, plan_trajectory
from wanpipe.pipeline.inputs import Inputs, resolve_inputs
from wanpipe.pipeline.plan import Plan, Work, report_reused, target
from wanpipe.store import Entry, Run, Store
from wanpipe.weights.model import Model, find_model


@dataclass(frozen=True, kw_only=True)
class DenoisePlan(Plan[list[Entry]]):
    """The plan of a denoising request, and the run of each of its entries."""

    runs: tuple[Run, ...]


def plan(model: Model, inputs: Inputs, params: Params, store: Store) -> DenoisePlan:
    """Plan the missing steps of every text and seed, up to `stop_at` or the last step.

    A step in the inputs continues its run, or starts a branch if a setting differs. Raises
    UsageError for invalid settings, and for entries that do not fit the model.
    """
    check_devices(params.devices)
    request = resolve_request(model, inputs, params, store)
    requests = [request, *(replace(request, text=text) for text in inputs.more_texts)]
    begun = starts(request, params)
    trajectories = [plan_trajectory(one, start, store) for one in requests for start in begun]
    turns = in_order(trajectories)
    plans = plan_experts(turns, store, params.devices)
    loras = match_loras(model, request.settings, request.lora_files, plans, store)
    units = Counter(step.expert for step, _ in turns)
    reused = [
        one.last for one in trajectories if one.last is not None and one.last is not request.step
    ]

    def make() -> list[Entry]:
        for entry in reused:
            report_reused(entry, store)
        for trajectory in trajectories:
            store.save_run(trajectory.run)
        Sampler(plans, loras, store, params.devices).run(trajectories)
        return [one.end.published() for one in trajectories]

    return DenoisePlan(
        make=make,
        targets=tuple(target(step.recipe, store) for step, _ in turns),
        entries=tuple(one.end for one in trajectories),
        reused=tuple(reused),
        work=tuple(
            Work(
                component=name,
                stage="denoise",
                plan=one,
                units=units[name],
                model=model,
                memory=params.memory,
                whole=not one.streamed,
            )
            for name, one in plans.items()
        ),
        settings=request.settings,
        runs=tuple(one.run for one in trajectories),
    )


def run(model: Model, inputs: Inputs, params: Params, store: Store) -> list[Entry]:
    """Denoise as planned by `plan`, and return the last entry of every text and seed, text by
    text.
    """
    return plan(model, inputs, params, store).make()


@click.command("denoise")
@options.model
@options.sources
@options.canvas
@options.sampling
@options.loras
@options.memory
@options.devices
@options.stop_at
@stage_options
def command(session: Session, model: str | None, references: tuple[str, ...], **asked: Any) -> None:
    """Denoise a latent step by step, from noise or from a step.

    To start a run, pass a text entry with --from, and an image or a video entry if the model takes
    one. Several text entries start a run each. To finish a run, pass one of its steps. To branch,
    pass a step and other settings. Every step becomes an entry. After an interruption, the same
    command resumes at the last finished step.
    """
    if serves_another():
        return
    asked["seeds"] = choose_seeds(asked["seeds"], asked.pop("auto_seeds"), session.store.report)
    inputs = resolve_inputs(references, ("text", "image", "video", "step"), session.store)
    found = find_model(model, inputs.entries, session.store, inputs.run)
    session.carry_out(plan(found, inputs, Params(**asked), session.store))
