"""denoise: noise to latents, one entry per step.

Reads: a text entry, an image entry where the model takes one, or a step to continue; a model's
transformers.
Writes: for every step `latent`, `x0` (C, F, H, W) and `solver/*`, which with --step-cache holds its
state too; the record of the run; prints the last step of each seed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import click
from msgspec import UNSET, UnsetType, structs

from wanpipe.cli import options
from wanpipe.cli.session import Session, stage_options
from wanpipe.errors import UsageError
from wanpipe.pipeline import chain, forecast, loras, sources
from wanpipe.pipeline.budget import ITEMSIZE, Expert, ExpertNeed, Need, choose
from wanpipe.pipeline.lineage import reference
from wanpipe.pipeline.settings import Params as Params
from wanpipe.pipeline.settings import latent_shape, schedule_of, settle
from wanpipe.pipeline.sources import Sources
from wanpipe.runtime.documents import plain
from wanpipe.store import Draft, Entry, Publisher, Recipe, Run, Settings, Store, runs
from wanpipe.store.schema import Noise
from wanpipe.weights.model import Model, find_model

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from wanpipe.pipeline.denoiser import Denoiser


@dataclass
class Trajectory:
    """One seed's way through the chain: its run, the steps to take, the last one that is there, and
    the state after it.
    """

    run: Run
    recipes: list[Recipe]
    noise: "Callable[[], np.ndarray]"
    last: Entry | None
    state: "tuple[str, dict[str, mx.array]] | None" = None  # with the key of the step it follows

    def load(self, recipe: Recipe, publisher: Publisher) -> "dict[str, mx.array]":
        """The state before a step: the start noise, what memory holds, or what the entry of the
        step before holds.
        """
        import mlx.core as mx

        if recipe.parent is None:
            return {"latent": mx.array(self.noise())}
        if self.state is None or self.state[0] != recipe.parent:
            entry = self.last
            if entry is None or entry.key != recipe.parent:  # taken under the other expert, or by
                publisher.collect(keep=0)  # another process meanwhile
                entry = publisher.store.resolve(recipe.parent)
            names = {name: name.removeprefix("solver/") for name in entry.names}
            arrays = {short: mx.array(entry.read(name)) for name, short in names.items()}
            self.state = (entry.key, arrays)
        return self.state[1]


@dataclass(frozen=True)
class Context:
    """What the steps of one call are taken with; `ran` tells of every step that could reuse a
    velocity whether the network ran.
    """

    model: Model
    given: Sources
    settings: Settings
    choice: loras.Choice
    memory: int | None
    store: Store
    ran: list[bool] = field(default_factory=list)

    def expert(self, recipe: Recipe) -> str:
        """Name the expert that takes a step."""
        return chain.expert_at(self.model.config, recipe.material.timestep)

    def needs(self, recipes: Sequence[Recipe]) -> dict[str, ExpertNeed]:
        """Choose for every expert that takes one of these steps how it is run.

        Raises UsageError where --memory is less than any way takes.
        """
        needs = {}
        for name in dict.fromkeys(map(self.expert, recipes)):
            first = next(recipe for recipe in recipes if self.expert(recipe) == name)
            ways = self.sized(name, first.material).ways()
            needs[name] = choose(name, ways, self.memory, self.store.report)
        return needs

    def sized(self, name: str, material: Any) -> Expert:
        """The dimensions and sizes of an expert that takes a step of this material."""
        config, computed, text = self.model.config, ITEMSIZE[material.dtype], self.given.text
        assert text is not None  # since `sources.check`
        sides = chain.sides_at(material.guide_scale)
        return Expert(
            config=config.dit,
            bytes=self.model.component(name).bytes,
            stored=computed if config.quantization else ITEMSIZE[config.dtype],
            computed=computed,
            texts=tuple(len(getattr(text.material, side)) for side in sides),
            latent=latent_shape(self.settings, config.vae.stride),
            arrays=6 if material.step_cache is not UNSET else 4,
        )


def run(model: Model, given: Sources, params: Params, store: Store) -> list[Entry]:
    """Denoise every seed to the last step or `stop_at`, from the last step that is there; return
    the last entries.

    With a step among the sources its run is finished, or branched from there where something else
    is given anew.
    Raises UsageError for settings that cannot be right and for entries that do not fit the model.
    """
    return [last for last, _ in solve(model, given, params, store)]


def solve(model: Model, given: Sources, params: Params, store: Store) -> list[tuple[Entry, Run]]:
    """Denoise as `run` does; return each last entry with the run that it belongs to."""
    if given.step is not None and given.run is None:
        given = sources.with_run(given, store)
    given = sources.with_inputs(given, store)
    sources.check(given, model)
    choice = loras.choose(model, given.run, params, store)
    settings = structs.replace(settle(model, given, params), loras=choice.loras)
    total = settings.steps
    first = 0 if given.step is None else given.step.step + 1
    stop = total if params.stop_at is None else params.stop_at
    if not max(first, 1) <= stop <= total:
        raise UsageError(
            f"stop-at must be {max(first, 1)} to {total} here, got {stop}; leave it out to finish"
        )
    if (
        given.step is not None
        and given.step.material.sigma_next != schedule_of(settings).sigmas[first]
    ):
        raise UsageError(
            f"step {given.step.key[:8]} is not step {first} of {total} at this shift and solver; "
            "start from noise"
        )
    context = Context(model, given, settings, choice, params.memory, store)
    trajectories = []
    for noise, draw in starts(context, params):
        one = planned(context, noise, draw, first)
        one.recipes = one.recipes[: stop - first]
        trajectories.append(resume(one, store))
    ends = [one.recipes[-1] if one.recipes else None for one in trajectories]
    walk(context, trajectories)
    found = []
    for one, end in zip(trajectories, ends, strict=True):
        last = one.last if end is None else store.result(end)
        assert last is not None, "a run has at least one step"
        found.append((last, one.run))
    return found


def starts(
    context: Context, params: Params
) -> "list[tuple[Noise | None, Callable[[], np.ndarray]]]":
    """Give every start: what names its noise in the chain, None for a step that is continued, and
    the function that makes it.
    """
    if context.given.step is not None:
        if params.seeds or params.noise:
            raise UsageError(
                "a seed or noise is given together with a step, which has its own; leave one out"
            )
        return [(None, unused)]
    config, settings = context.model.config, context.settings
    trim = settings.trim_first_frames
    shape = (config.vae.z_dim, *latent_shape(settings, config.vae.stride))
    if params.noise is not None:
        if params.seeds:
            raise UsageError("--seed and --noise exclude each other; give one")
        array = sources.read_noise(params.noise, shape)
        return [(chain.noise_of_array(array, trim), lambda: array)]
    return [
        (chain.noise_of_seed(seed, shape, trim), partial(chain.draw, seed, shape))
        for seed in params.seeds or (0,)
    ]


def unused() -> "np.ndarray":
    """Stand for the noise of a run that is continued from a step."""
    raise AssertionError("a run that is continued from a step draws no noise")


def planned(
    context: Context, noise: Noise | None, draw: "Callable[[], np.ndarray]", first: int
) -> Trajectory:
    """Plan every step of one seed, and name the run: the one that is continued, or a new one."""
    from wanpipe.backend.device import compute_dtype

    model, given, settings = context.model, context.given, context.settings
    step, before, text = given.step, given.run, given.text
    assert text is not None
    dtype = compute_dtype(model.config.dtype)
    inputs = chain.Inputs(
        text=text,
        image=given.image.key if given.image else None,
        noise=noise,
        parent=step.key if step else None,
        before=step.material if step else None,
        first=first,
    )
    recipes = chain.plan(model, settings, inputs, dtype)
    steps = [recipe.key for recipe in recipes]
    seed = before.seed if before else None if noise is None else noise.seed
    new = Run(
        key="0" * 32,
        start=noise or (step.key if step else ""),
        first=first,
        steps=steps,
        inputs={"text": text.key} | ({"image": inputs.image} if inputs.image else {}),
        settings=settings,
        dtype=dtype,
        model=reference(model),
        seed=None if isinstance(seed, UnsetType) else seed,
        prompt=text.made.prompt,
        negative_prompt=text.made.negative_prompt,
        fps=float(model.config.defaults.fps),
        loras=context.choice.files,
        created=runs.now(),
    )
    if step is not None and before is not None:
        taken = before.steps[: before.steps.index(step.key) + 1]
        whole = structs.replace(new, start=before.start, first=before.first, steps=taken + steps)
        # wanpipe 0.1.0 noted where the model lies, and no more
        known = structs.replace(whole.model, key=None, experts={})
        known = whole.model if before.model.key else known
        if runs.named(structs.replace(whole, model=known)).key == before.key or not steps:
            new = whole  # nothing is changed: the run goes on
    return Trajectory(runs.named(new), recipes, draw, step)


def resume(one: Trajectory, store: Store) -> Trajectory:
    """Skip the steps up to the last sound one that is there; with `force` none is skipped."""
    for index in range(len(one.recipes) - 1, -1, -1):
        recipe = one.recipes[index]
        if not store.wants(recipe) and (entry := store.find(recipe.stage, recipe.key)):
            store.report.event("reused", **recipe.event(), path=str(entry.path))
            return Trajectory(one.run, one.recipes[index + 1 :], one.noise, entry)
    return one


def walk(context: Context, trajectories: Sequence[Trajectory]) -> None:
    """Take the steps that are missing: expert by expert, under each run by run, so that each expert
    loads once.
    """
    experts, store = context.model.config.experts, context.store

    def rank(pair: tuple[Recipe, Trajectory]) -> int:
        return -experts.index(context.expert(pair[0]))  # high noise first

    todo = sorted([(recipe, one) for one in trajectories for recipe in one.recipes], key=rank)
    needs = context.needs([recipe for recipe, _ in todo])
    denoiser = lazy_denoiser(context, needs)
    for one in trajectories:
        store.keep_run(one.run)  # from here on nothing is refused
    if not todo:
        return
    with Publisher(store) as publisher, store.report.task("denoise", len(todo)) as task:
        following = [*(one for _, one in todo[1:]), None]
        for (recipe, one), after in zip(todo, following, strict=True):
            need = needs[context.expert(recipe)]
            publisher.obtain(recipe, filler(context, denoiser, publisher, recipe, one, need))
            if after is not one:
                one.state = None  # the state of one seed in memory at a time, as planned
            task.advance()
    steps = Counter(context.expert(recipe) for recipe, _ in todo)
    for name, need in needs.items():
        forecast.tell(name, "denoise", need, steps[name], store)
    if context.ran:
        ran = context.ran
        store.report.remark(f"step cache: the network ran in {sum(ran)} of {len(ran)} steps")


def lazy_denoiser(context: Context, needs: dict[str, ExpertNeed]) -> "Callable[[], Denoiser]":
    """Return a function that makes the denoiser when first called: planning loads nothing."""
    added = loras.fitted(context.model, context.choice, needs, context.store)

    @cache
    def get() -> "Denoiser":
        from wanpipe.pipeline.denoiser import Denoiser

        prompting = sources.read_prompting(context.given)
        return Denoiser(context.model, prompting, needs, added, context.store)

    return get


def filler(
    context: Context,
    denoiser: "Callable[[], Denoiser]",
    publisher: Publisher,
    recipe: Recipe,
    one: Trajectory,
    need: Need,
) -> Callable[[Draft], dict[str, Any]]:
    """Return what takes one step of a run and writes its entry."""
    settings, store = context.settings, context.store

    def fill(draft: Draft) -> dict[str, Any]:
        import mlx.core as mx
        import numpy as np

        from wanpipe.backend.device import provenance
        from wanpipe.sampling import SOLVERS, easy_cache

        net, material, state = denoiser(), plain(recipe.material), one.load(recipe, publisher)
        latent = net.prompting.blend(state["latent"])
        # the last step always computes
        rule = material.get("step_cache") if material["sigma_next"] else None
        velocity = easy_cache.reuse(latent, rule, state) if rule else None
        ran = velocity is None
        if velocity is None:
            velocity = net.velocity(latent, material["timestep"], material["guide_scale"])
        before = {name: array for name, array in state.items() if name != "latent"}
        solver, step = SOLVERS[settings.scheduler], recipe.number
        moved, x0, after = solver.advance(latent, velocity, schedule_of(settings), step, before)
        moved = net.prompting.blend(moved)
        if rule:
            computed = velocity if ran else None
            after = after | easy_cache.update_state(latent, computed, moved, rule, state)
        arrays = {"latent": moved, "x0": x0}
        arrays |= {f"solver/{name}": array for name, array in after.items()}
        mx.eval(arrays)
        for name, array in arrays.items():
            draft.write(name, np.array(array))
        one.state = (recipe.key, {**after, "latent": moved, "x0": x0})
        noted = {}
        if "step_cache" in material:
            noted = {"network_ran": ran}
            context.ran.append(ran)
            if not ran:
                event = recipe.event()
                store.report.event("skipped", component=context.expert(recipe), **event)
        return provenance() | noted | ({"flops": need.flops} if ran else {})

    return fill


@click.command("denoise", short_help="noise to latents, step by step")
@stage_options
@options.model
@options.sources
@options.canvas
@options.sampling
@options.loras
@options.memory
@options.stop_at
def command(session: Session, model: str | None, references: tuple[str, ...], **asked: Any) -> None:
    """Denoise a video's latent from a text entry (and an image entry), or from a step of a run.

    Every step is kept: interrupted, the same command resumes where it stopped.
    """
    given = sources.collect(references, ("text", "image", "step"), session.store)
    found = find_model(model, given.entries, session.store, given.run)
    entries = run(found, given, Params(**asked), session.store)
    session.deliver([entry.path for entry in entries])
