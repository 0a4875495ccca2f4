"""A store that plans: it finds what is there and tells what would be computed, and why, but
computes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wanpipe.cache.explain import Explanation, Known, explain
from wanpipe.runtime.documents import convert
from wanpipe.runtime.report import Report, Task
from wanpipe.store.entry import Entry
from wanpipe.store.index import Summary
from wanpipe.store.recipe import Recipe, record_of
from wanpipe.store.runs import Run, Settings
from wanpipe.store.schema import Record
from wanpipe.store.shortcuts import HashCache
from wanpipe.store.store import Store


@dataclass
class Miss:
    """An entry to compute, why, and how many steps it stands for."""

    recipe: Recipe
    explanation: Explanation
    steps: int = 1

    @property
    def reason(self) -> str:
        """Why it is not there, in words."""
        step = self.recipe.step
        if self.explanation.nearest is not None:
            return str(self.explanation)
        return f"never taken beyond step {step}" if step else f"no {self.recipe.stage} entry yet"

    def event(self) -> dict[str, Any]:
        """The fields of the event `missing`."""
        parts = asdict(self.explanation)
        return {**self.recipe.event(), "steps": self.steps, "reason": self.reason, **parts}


class PlanReport(Report):
    """Passes on what is planned, but no progress, since nothing is under way; calls `finished`
    after every stretch of work.
    """

    def __init__(self, report: Report, finished: Callable[[], None]) -> None:
        self.report, self.finished = report, finished

    def event(self, kind: str, **fields: Any) -> None:
        self.report.event(kind, **fields)

    def remark(self, text: str) -> None:
        self.report.remark(text)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
        yield Task(self, label, total)
        self.finished()


class PlanStore(Store):
    """Stands in for a `Store` under --dry-run: `obtain` returns entries that are not there, with
    their key and path.

    Every entry gives an event `planned`; every first miss also `missing`, with the reason and the
    number of steps that follow from it.
    """

    dry = True

    def __init__(
        self,
        root: Path | str,
        report: Report | None = None,
        force: bool = False,
        memo: HashCache | None = None,
    ) -> None:
        super().__init__(root, PlanReport(report or Report(), self.tell_misses), force)
        self.memo = memo or self.memo  # of the store that will compute, so that it need not hash
        self.misses: dict[str, Miss] = {}  # by key, of all that follows too
        self.untold: list[Miss] = []
        self.texts: dict[str, str] = {}
        self.planned: Settings | None = None  # of the run whose steps are planned now

    def begin(self, recipe: Recipe, fill: object, held: object) -> None:
        """Tell whether the entry is there; if not, how it differs from the nearest one that is."""
        path = self.path(recipe.stage, recipe.key)
        event = {**recipe.event(), "path": str(path)}
        if "prompt" in recipe.made:
            self.texts[recipe.key] = recipe.made["prompt"]
        if self.wants(recipe):
            follows = any(key in self.misses for key in (recipe.parent, *recipe.inputs.values()))
            miss = self.miss(recipe, self.misses.get(recipe.parent or ""), follows)
            reason = miss.reason if miss.recipe is recipe else ""
            fields = {"status": "to compute", "reason": reason, "follows": follows}
            self.report.event("planned", **event, **fields)
        else:
            self.report.event("planned", **event, status="already there")
        if recipe.stage != "denoise":
            self.tell_misses()

    def result(self, recipe: Recipe) -> Entry:
        """Return what the entry of `recipe` would be."""
        unknown = {"digest": {}, "files": {}, "seal": "0" * 32}
        record = convert({**record_of(recipe, {}), **unknown}, Record)
        return Entry(self.path(recipe.stage, recipe.key), record)

    def miss(self, recipe: Recipe, before: Miss | None, follows: bool) -> Miss:
        """Note a miss: as one more step of the one before, or with an explanation of its own."""
        miss = before
        if miss is None:
            compared = recipe.stage == "denoise" or not follows
            miss = Miss(recipe, Explanation(None))
            if compared:
                known = Known(self.root, self.text_of, self.settings_of, self.planned)
                miss.explanation = explain(recipe, self.summaries.values(), known)
                self.untold.append(miss)
        else:
            miss.steps += 1
        self.misses[recipe.key] = miss
        return miss

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        """All that is there, read when the first miss is to be explained."""
        return self.index.read()

    @cached_property
    def settings(self) -> dict[str, Settings]:
        """The settings that each step was made with, by its key; of several, the latest."""
        return {step: run.settings for run in reversed(self.runs.all()) for step in run.steps}

    def settings_of(self, step: str) -> Settings | None:
        """The settings of the latest run that a step belongs to."""
        return self.settings.get(step)

    def keep_run(self, run: Run) -> None:
        """Note what is planned, for explanations."""
        self.planned = run.settings

    def tell_misses(self) -> None:
        """Tell of misses, when it is known how many steps each stands for."""
        for miss in self.untold:
            self.report.event("missing", **miss.event())
        self.untold.clear()

    def text_of(self, key: str) -> str | None:
        """The prompt of a text entry, there or planned; None where it is neither."""
        there = self.summaries.get(f"encode-text/{key}")
        return there.prompt if there else self.texts.get(key)
