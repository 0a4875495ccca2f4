"""Reports plans: which entries exist, which will be computed and why, and the memory and time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

from wanpipe.cache.explain import Explanation, Known, explain
from wanpipe.errors import StoreError
from wanpipe.pipeline.plan import Plan, Target, Work, report_reused
from wanpipe.pipeline.schedule import bytes_ahead
from wanpipe.store import Recipe, Settings, Store
from wanpipe.store.entry import read_record
from wanpipe.store.index import Summary

LATEST = 8  # entries whose speed counts
UNKNOWN = Explanation(None)


@dataclass
class Miss:
    """An entry to compute, the reason, and the number of steps from it to the last."""

    recipe: Recipe
    explanation: Explanation
    steps: int = 1

    @property
    def reason(self) -> str:
        """Why the entry does not exist, in words."""
        step = self.recipe.step
        if self.explanation.nearest is not None:
            return str(self.explanation)
        return f"never taken beyond step {step}" if step else f"no {self.recipe.stage} entry yet"

    def event(self) -> dict[str, Any]:
        """The fields of the event `missing`."""
        parts = asdict(self.explanation)
        return {**self.recipe.event(), "steps": self.steps, "reason": self.reason, **parts}


class DryRun:
    """Reports the plans of one command, in the order in which they would be made.

    Every target gives an event `planned`. The first one that a stage must compute also gives
    `missing`, with the reason and the number of steps that follow. Every network that would run
    gives `forecast`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.misses: dict[str, Miss] = {}  # by the key of every target to compute
        self.prompts: dict[str, str] = {}  # of texts that are planned, by their key

    def report(self, plans: Sequence[Plan[Any]]) -> None:
        """Report plans that are made one after the other."""
        ahead = iter(bytes_ahead([work for plan in plans for work in plan.work]))
        for plan in plans:
            for entry in plan.reused:
                report_reused(entry, self.store)
            self.report_targets(plan.targets, plan.settings)
            for work in plan.work:
                self.forecast(work, next(ahead))

    def report_targets(self, targets: Sequence[Target], settings: Settings | None = None) -> None:
        """Report targets of a run with these settings, then why they are missing."""
        explained: list[Miss] = []
        for target in targets:
            recipe = target.recipe
            if "prompt" in recipe.made:
                self.prompts[recipe.key] = recipe.made["prompt"]
            event = {**recipe.event(), "path": str(target.path)}
            if target.exists:
                self.store.report.event("planned", **event, status="already there")
                continue
            follows = any(key in self.misses for key in (recipe.parent, *recipe.inputs.values()))
            if (miss := self.misses.get(recipe.parent or "")) is not None:
                miss.steps += 1
                reason = ""
            else:
                # after a new input a stage is new as a whole; only steps differ in their settings
                compared = recipe.stage == "denoise" or not follows
                miss = Miss(recipe, self.explain(recipe, settings) if compared else UNKNOWN)
                reason = miss.reason
                explained += [miss] if compared else []
            self.misses[recipe.key] = miss
            fields = {"status": "to compute", "reason": reason, "follows": follows}
            self.store.report.event("planned", **event, **fields)
        for miss in explained:
            self.store.report.event("missing", **miss.event())

    def explain(self, recipe: Recipe, settings: Settings | None) -> Explanation:
        """Compare a recipe with the nearest entry that exists."""
        known = Known(self.store.root, self.prompt_of, self.settings.get, settings)
        return explain(recipe, self.summaries.values(), known)

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        """Every entry of the cache."""
        return self.store.index.read()

    @cached_property
    def settings(self) -> dict[str, Settings]:
        """The settings of the latest run that each step belongs to, by the step's key."""
        runs = self.store.runs.all()
        return {step: run.settings for run in reversed(runs) for step in run.steps}

    def prompt_of(self, key: str) -> str | None:
        """The prompt of a text entry, existing or planned; None if it is unknown."""
        found = self.summaries.get(f"encode-text/{key}")
        return found.prompt if found else self.prompts.get(key)

    def forecast(self, work: Work, ahead: int) -> None:
        """Report the memory, the arithmetic and, if it is known, the time of some work.

        `ahead` is the size of the next network, if it is read meanwhile.
        """
        plan = work.plan
        flops, devices = plan.flops * work.units, plan.way.devices
        speed, alone = self.speed(work.stage, devices), None
        if speed is None and devices > 1 and (alone := self.speed(work.stage)):
            speed = alone * devices  # at best: what devices exchange takes time as well
        self.store.report.event(
            "forecast",
            stage=work.stage,
            component=work.component,
            units=work.units,
            peak_bytes=plan.peak,
            **({"ahead_bytes": ahead} if ahead else {}),
            flops=flops,
            seconds=round(flops / speed, 1) if speed else None,
            **({"devices": devices, "way": plan.way.words} if devices > 1 else {}),
            **({"at_best": True} if alone else {}),
        )

    def speed(self, stage: str, devices: int = 1) -> float | None:
        """Operations per second of the latest entries of a stage from as many devices like this
        one, if any.
        """
        from wanpipe.backend.device import describe

        device, speeds = describe(), []
        rows = [row for row in self.summaries.values() if row.stage == stage and row.seconds]
        for row in sorted(rows, key=lambda row: row.time, reverse=True)[:LATEST]:
            try:
                made = read_record(self.store.root / row.id).made
            except StoreError:
                continue  # damaged, or removed meanwhile: its speed does not count
            like = made.device == device and made.devices == devices
            if like and made.flops and made.seconds:
                speeds.append(made.flops / made.seconds)
        return median(speeds) if speeds else None
