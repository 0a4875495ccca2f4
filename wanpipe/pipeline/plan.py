"""The plan of a stage: the entries to make, the networks to run, and the function that does it.

`--dry-run` reports a plan. `run` of a stage executes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from wanpipe.pipeline.budget import MemoryPlan, choose_plan
from wanpipe.runtime.documents import convert
from wanpipe.runtime.report import Report
from wanpipe.store import Entry, Recipe, Settings, Store
from wanpipe.store.entry import UNPUBLISHED
from wanpipe.store.recipe import build_record
from wanpipe.store.schema import Record
from wanpipe.weights.model import Model

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Target:
    """An entry to make, where it goes, and whether it is up to date."""

    recipe: Recipe
    path: Path
    exists: bool


@dataclass(frozen=True, kw_only=True)
class Work:
    """Units of work (steps, prompts, images or videos) of one network, and its memory plan.

    `memory` is the limit in bytes that --memory gives. `whole` says whether the weights in the file
    of the `model` are loaded together.
    """

    component: str
    stage: str
    plan: MemoryPlan
    units: int = 1
    model: Model
    memory: int | None = None
    whole: bool = True


def encoder_work(
    model: Model, stage: str, plan: MemoryPlan, memory: int | None, report: Report
) -> Work:
    """Return the work of the VAE's encoder on an image or a video. Raises UsageError if --memory is
    less than it needs.
    """
    choose_plan("vae_encoder", [plan], memory, report)
    return Work(component="vae_encoder", stage=stage, plan=plan, model=model, memory=memory)


@dataclass(frozen=True, kw_only=True)
class Plan(Generic[Result]):
    """Everything that a stage will do. Making it loads only what it needs.

    `targets` are in the order in which they are made. `entries` are the results for other stages.
    They have no arrays until they exist. `reused` are entries that targets continue from.
    `settings` are those of the targets' run.
    """

    make: Callable[[], Result]
    targets: tuple[Target, ...]
    entries: tuple[Entry, ...] = ()
    reused: tuple[Entry, ...] = ()
    work: tuple[Work, ...] = ()
    settings: Settings | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths of the results: the entries, or a model, which is only a target."""
        return tuple(result.path for result in self.entries or self.targets)


def plan_entries(
    recipes: Sequence[Recipe], make: Callable[[], Result], work: Sequence[Work], store: Store
) -> Plan[Result]:
    """Return the plan of a stage whose results are the entries of these recipes."""
    return Plan(
        make=make,
        targets=tuple(target(recipe, store) for recipe in recipes),
        entries=tuple(expected(recipe, store) for recipe in recipes),
        work=tuple(work),
    )


def target(recipe: Recipe, store: Store) -> Target:
    """Return the target of a recipe in a store."""
    exists = not store.must_compute(recipe)
    return Target(recipe=recipe, path=store.path(recipe.stage, recipe.key), exists=exists)


def expected(recipe: Recipe, store: Store) -> Entry:
    """Return the entry of a recipe before it is published, without arrays."""
    unknown = {"digest": {}, "files": {}, "seal": UNPUBLISHED}
    record = convert({**build_record(recipe, {}), **unknown}, Record)
    return Entry(store.path(recipe.stage, recipe.key), record)


def report_reused(entry: Entry, store: Store) -> None:
    """Report an entry that is reused as the start of other work."""
    store.report.event("reused", **entry.event(), path=str(entry.path))
