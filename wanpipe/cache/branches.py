"""Formats the steps of a tree of runs: what a step differs in from the start of its run.

Reads only summaries of entries, names and records of runs.
"""

import time
from dataclasses import dataclass

from wanpipe.cache.listing import settings_summary
from wanpipe.cache.tree import Forest, forest
from wanpipe.runtime import units
from wanpipe.runtime.text import printable
from wanpipe.store import Run, Store
from wanpipe.store.index import Summary


def names(store: Store) -> dict[str, list[str]]:
    """Return names and pins by stage/key."""
    found: dict[str, list[str]] = {}
    for name, entry_id in store.names.all().items():
        found.setdefault(entry_id, []).append(name)
    for entry_id in store.pins.all().values():
        found.setdefault(entry_id, []).append("pinned")
    return found


@dataclass(frozen=True)
class View:
    """The contents of a cache: summaries by stage/key, trees, runs by step, names by stage/key."""

    rows: dict[str, Summary]
    trees: Forest
    runs: dict[str, Run]
    names: dict[str, list[str]]

    @staticmethod
    def of(store: Store) -> "View":
        """Read a cache."""
        rows = store.index.read()
        runs = {step: run for run in reversed(store.runs.all()) for step in run.steps}
        return View(rows, forest(rows), runs, names(store))


class StepFormatter:
    """Formats the steps of one tree. A step shows only what differs from the start of its run."""

    def __init__(self, view: View, root: str, selected: str) -> None:
        self.view, self.selected = view, selected
        trees = view.trees
        self.first = trees.steps.get(root) or trees.steps[trees.after[root][0]]
        self.now = time.time()

    def settings(self, row: Summary) -> str:
        """Return the settings of a step, with the size and the LoRAs of its run."""
        return printable(settings_summary(row, self.view.runs.get(row.key)))

    def prompt(self, row: Summary) -> str:
        """Return the prompt of a step in quotation marks, or its key if the text was removed."""
        key = row.inputs.get("text", "")
        text = self.view.rows.get(f"encode-text/{key}")
        return units.quote(text.prompt) if text and text.prompt is not None else f"text {key[:8]}"

    def start(self) -> str:
        """Return the seed, prompt and settings that the run started with."""
        run = self.view.runs.get(self.first.key)
        seed = "given noise" if run is None or run.seed is None else f"seed {run.seed}"
        return f"{seed}, {self.prompt(self.first)}, {self.settings(self.first)}"

    def shown(self, key: str) -> bool:
        """Return whether a step in the middle of a run gets a line of its own."""
        named = f"denoise/{key}" in self.view.names
        return key == self.selected or key in self.view.trees.frames or named

    def line(self, key: str) -> str:
        """Format a step: key, number, names, what differs from the start, frames, age."""
        row = self.view.trees.steps.get(key)
        age = "" if row is None else units.format_age(self.now - units.parse_timestamp(row.time))
        return "  ".join([*self.parts(key), *filter(None, [age])])

    def parts(self, key: str) -> list[str]:
        """Format a step without its age."""
        row = self.view.trees.steps.get(key)
        if row is None:
            return [key[:8], "removed"]
        run = self.view.runs.get(key)
        of = f"/{run.step_count}" if run else ""
        parts = [key[:8], f"step {(row.step or 0) + 1}{of}"]
        selected = ["this one"] if key == self.selected else []
        if names := [*self.view.names.get(row.id, []), *selected]:
            parts.append(f"({', '.join(names)})")
        initial = self.settings(self.first).split(", ")
        parts += [part for part in self.settings(row).split(", ") if part not in initial]
        if row.inputs != self.first.inputs:
            parts.append(self.prompt(row))
        for one in self.view.trees.frames.get(key, ()):
            parts.append(f"frames {one.key[:8]}" + f" ({one.what})" * bool(one.what))
        return parts
