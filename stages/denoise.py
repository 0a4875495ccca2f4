"""denoise: noise to latents, one entry per step.

Reads: a text entry, an image entry where the model takes one, or a step to go on from; a model's
transformers.
Writes: for every step `latent`, `x0` (C, F, H, W) and `solver/*`, which with --step-cache holds its
state too; prints the last one of each seed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from wanpipe import chain, cli, forecast, loras, options, sources
from wanpipe.budget import ITEMSIZE, Expert, ExpertNeed, Need, choose
from wanpipe.errors import UsageError
from wanpipe.model import Model, find_model
from wanpipe.settings import Params as Params
from wanpipe.settings import Settings, settle
from wanpipe.sources import Sources
from wanpipe.store import Draft, Entry, Recipe, Store

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from wanpipe.denoiser import Denoiser


@dataclass
class Run:
    """One seed's way through the chain: the steps to take, the last one that is there, and the
    state after it.
    """

    recipes: list[Recipe]
    noise: "Callable[[], np.ndarray]"
    last: Entry | None
    state: "tuple[str, dict[str, mx.array]] | None" = None  # with the key of the step it follows

    def load(self) -> "dict[str, mx.array]":
        """The state before the next step: the start noise, what memory holds, or what the last
        step's entry holds.
        """
        import mlx.core as mx

        if self.last is None:
            return {"latent": mx.array(self.noise())}
        if self.state is None or self.state[0] != self.last.key:
            names = {name: name.removeprefix("solver/") for name in self.last.names}
            arrays = {short: mx.array(self.last.read(name)) for name, short in names.items()}
            self.state = (self.last.key, arrays)
        return self.state[1]


@dataclass(frozen=True)
class Means:
    """What the steps of one call are taken with."""

    model: Model
    given: Sources
    settings: Settings
    choice: loras.Choice
    memory: int | None

    def expert(self, recipe: Recipe) -> str:
        """Name the expert that takes a step."""
        return chain.expert_at(self.model.config, recipe.material["timestep"])

    def needs(self, recipes: Sequence[Recipe], store: Store) -> dict[str, ExpertNeed]:
        """Choose for every expert that takes one of these steps how it is run.

        Raises UsageError where --memory is less than any way takes.
        """
        needs = {}
        for name in dict.fromkeys(map(self.expert, recipes)):
            first = next(recipe for recipe in recipes if self.expert(recipe) == name)
            ways = self.sized(name, first.material).ways()
            needs[name] = choose(name, ways, self.memory, store.report)
        return needs

    def sized(self, name: str, material: dict[str, Any]) -> Expert:
        """The dimensions and sizes of an expert that takes a step of this material."""
        config, computed, text = self.model.config, ITEMSIZE[material["dtype"]], self.given.text
        assert text is not None  # since `sources.check`
        sides = chain.sides_at(material["guide_scale"])
        return Expert(
            config=config.dit,
            bytes=self.model.component(name).bytes,
            stored=computed if config.quantization else ITEMSIZE[config.dtype],
            computed=computed,
            texts=tuple(len(text.material[side]) for side in sides),
            latent=self.settings.latent_shape(config.vae.stride),
            arrays=6 if "step_cache" in material else 4,
        )


def run(model: Model, given: Sources, params: Params, store: Store) -> list[Entry]:
    """Denoise every seed to the last step or `stop_at`, from the last step that is there; return
    the last entries.

    With a step among the sources its run is finished, or branched from there where something else
    is given anew.
    Raises UsageError for settings that cannot be right and for entries that do not fit the model.
    """
    from wanpipe.device import compute_dtype

    given = sources.with_inputs(given, store)
    text = sources.check(given, model)
    choice = loras.choose(model, given.step, params, store)
    settings = replace(settle(model, given, params), loras=choice.loras)
    total = settings.schedule().steps
    first = 0 if given.step is None else given.step.record["step"] + 1
    stop = total if params.stop_at is None else params.stop_at
    if not max(first, 1) <= stop <= total:
        raise UsageError(
            f"stop-at must be {max(first, 1)} to {total} here, got {stop}; leave it out to finish"
        )
    note = {
        "settings": settings.to_json(),
        "model": str(model.directory.resolve()),
        "vae": model.hash("vae"),
        "lora_files": choice.files,
    }
    runs = []
    for material, noise, more in starts(model, given, settings, params):
        inputs = chain.Inputs(
            text=text.key,
            image=given.image.key if given.image else None,
            start=material,
            before=given.step.material if given.step else None,
            first=first,
        )
        dtype = compute_dtype(model.config.dtype)
        recipes = chain.plan(model, settings, inputs, dtype, {**note, **more})
        runs.append(resume(Run(recipes[: stop - first], noise, given.step), store))
    walk(Means(model, given, settings, choice, params.memory), runs, store)
    last = [one.last for one in runs if one.last is not None]
    for entry in last if stop < total else ():
        warn(entry, settings, store)
    return last


def warn(step: Entry, settings: Settings, store: Store) -> None:
    """Say where a step that two runs share remembers the settings of the other one."""
    there = Settings.from_json(step.made["settings"], "settings").to_json()
    for name, asked in settings.to_json().items():
        value = there[name]
        if value != asked:
            option = {"loras": "lora"}.get(name, name.replace("_", "-"))
            store.report.remark(
                f"step {step.key[:8]} remembers {option} {value}, not {asked}; give --{option} "
                "again when you go on from it"
            )


def starts(
    model: Model, given: Sources, settings: Settings, params: Params
) -> "list[tuple[dict[str, Any] | str, Callable[[], np.ndarray], dict[str, Any]]]":
    """Give every start: what names it in the chain, the function that makes the noise, and what to
    note of it.
    """
    if given.step is not None:
        if params.seeds or params.noise:
            raise UsageError(
                "a seed or noise is given together with a step, which has its own; leave one out"
            )
        made = given.step.made
        return [(given.step.key, unused, {"seed": made.get("seed")})]
    trim = settings.trim_first_frames
    shape = (model.config.vae.z_dim, *settings.latent_shape(model.config.vae.stride))
    # part of the noise's material: decode trusts every step of the chain to remember it
    trimmed = {"trim_first_frames": trim} if trim else {}
    if params.noise is not None:
        if params.seeds:
            raise UsageError("--seed and --noise exclude each other; give one")
        array = sources.read_noise(params.noise, shape)
        return [(chain.array_material(array) | trimmed, lambda: array, {"seed": None})]
    return [
        (
            chain.noise_material(seed, shape) | trimmed,
            cache(lambda seed=seed: chain.draw(seed, shape)),
            {"seed": seed},
        )
        for seed in params.seeds or (0,)
    ]


def unused() -> "np.ndarray":
    """Stand for the noise of a run that goes on from a step."""
    raise AssertionError("a run that goes on from a step draws no noise")


def resume(one: Run, store: Store) -> Run:
    """Skip the steps up to the last sound one that is there; with `force` none is skipped."""
    for index in range(len(one.recipes) - 1, -1, -1):
        recipe = one.recipes[index]
        if not store.wants(recipe) and (entry := store.find(recipe.stage, recipe.key)):
            store.report.event("reused", **recipe.event(), path=str(entry.path))
            return Run(one.recipes[index + 1 :], one.noise, entry)
    return one


def walk(means: Means, runs: Sequence[Run], store: Store) -> None:
    """Take the steps that are missing: expert by expert, under each run by run, so that each expert
    loads once.
    """
    experts = means.model.config.experts

    def rank(pair: tuple[Recipe, Run]) -> int:
        return -experts.index(means.expert(pair[0]))  # high noise first

    todo = sorted([(recipe, one) for one in runs for recipe in one.recipes], key=rank)
    if not todo:
        return
    needs = means.needs([recipe for recipe, _ in todo], store)
    denoiser = lazy_denoiser(means, needs, store)
    ran: list[bool] = []  # of every step that could reuse a velocity, whether the network ran
    with store.behind() as late, store.report.task("denoise", len(todo)) as task:
        for recipe, one in todo:
            need = needs[means.expert(recipe)]
            one.last = late.obtain(recipe, filler(denoiser, means.settings, recipe, one, need))
            if "network_ran" in one.last.made:
                ran.append(one.last.made["network_ran"])
                if not ran[-1]:
                    event = recipe.event()
                    store.report.event("skipped", component=means.expert(recipe), **event)
            task.advance()
        for one in runs:
            one.last = late.whole(one.last) if one.last else None
    steps = Counter(means.expert(recipe) for recipe, _ in todo)
    for name, need in needs.items():
        forecast.tell(name, "denoise", need, steps[name], store)
    if ran:
        store.report.remark(f"step cache: the network ran in {sum(ran)} of {len(ran)} steps")


def lazy_denoiser(
    means: Means, needs: dict[str, ExpertNeed], store: Store
) -> "Callable[[], Denoiser]":
    """Return a function that makes the denoiser when first called: planning loads nothing."""
    added = loras.fitted(means.model, means.choice, needs, store)

    @cache
    def get() -> "Denoiser":
        from wanpipe.denoiser import Denoiser

        return Denoiser(means.model, sources.read_prompting(means.given), needs, added, store)

    return get


def filler(
    denoiser: "Callable[[], Denoiser]", settings: Settings, recipe: Recipe, one: Run, need: Need
) -> Callable[[Draft], dict[str, Any]]:
    """Return what takes one step of a run and writes its entry."""

    def fill(draft: Draft) -> dict[str, Any]:
        import mlx.core as mx
        import numpy as np

        from wanpipe.device import made
        from wanpipe.sampling import SOLVERS, step_cache

        net, material, state = denoiser(), recipe.material, one.load()
        latent = net.prompting.blend(state["latent"])
        # the last step always computes
        rule = material.get("step_cache") if material["sigma_next"] else None
        velocity = step_cache.reuse(latent, rule, state) if rule else None
        ran = velocity is None
        if velocity is None:
            velocity = net.velocity(latent, material["timestep"], material["guide_scale"])
        before = {name: array for name, array in state.items() if name != "latent"}
        solver, step = SOLVERS[settings.scheduler], recipe.extra["step"]
        moved, x0, after = solver.advance(latent, velocity, settings.schedule(), step, before)
        moved = net.prompting.blend(moved)
        if rule:
            computed = velocity if ran else None
            after = after | step_cache.remember(latent, computed, moved, rule, state)
        arrays = {
            "latent": moved,
            "x0": x0,
            **{f"solver/{name}": array for name, array in after.items()},
        }
        mx.eval(arrays)
        for name, array in arrays.items():
            draft.write(name, np.array(array), "CFHW")
        one.state = (recipe.key, {**after, "latent": moved, "x0": x0})
        noted = {"network_ran": ran} if "step_cache" in material else {}
        return made() | noted | ({"flops": need.flops} if ran else {})

    return fill


@click.command("denoise", short_help="noise to latents, step by step")
@cli.common
@options.model
@options.sources
@options.canvas
@options.sampling
@options.loras
@options.memory
@options.stop_at
def command(
    session: cli.Session, model: str | None, references: tuple[str, ...], **asked: Any
) -> None:
    """Denoise a video's latent from a text entry (and an image entry), or go on from a step.

    Every step is kept: interrupted, the same command goes on where it stopped.
    """
    given = sources.collect(references, ("text", "image", "step"), session.store)
    found = find_model(model, given.entries, session.store)
    entries = run(found, given, Params(**asked), session.store)
    session.deliver([entry.path for entry in entries])
