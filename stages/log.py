"""log: draw a run and its branches as a tree.

Reads: summaries of the cache's entries.
Writes: nothing; prints the tree on stdout.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from wanpipe.cache.listing import settings_summary
from wanpipe.cache.tree import Forest, draw, forest
from wanpipe.cli.printing import print_lines
from wanpipe.cli.session import Session, read_only_options
from wanpipe.errors import UsageError
from wanpipe.runtime import units
from wanpipe.runtime.text import printable
from wanpipe.store import Run, Store
from wanpipe.store.index import Summary


def run(reference: str, store: Store) -> Iterator[str]:
    """Draw the run of a step or of its frames with all its branches, or every run of a text or an
    image, line by line with the latest step on top.

    Raises UsageError for an entry that has no steps.
    """
    path = store.locate(reference)
    home = Store(path.parent.parent, store.report)
    rows = home.index.read()
    row = rows.get(f"{path.parent.name}/{path.name}")
    trees = forest(rows)
    if row is None or row.stage == "convert":
        raise UsageError(f"log takes a step, its frames, a text or an image, got {reference}")
    step = row.inputs.get("step", "") if row.stage == "decode" else row.key
    if row.stage.startswith("encode"):
        roots = trees.roots(row.key)
    else:
        roots = [trees.root(step)] if step in trees.steps else []
    if not roots:
        raise UsageError(f"no step in {home.root} was made from {reference}")
    owners = {step: run for run in reversed(home.runs.all()) for step in run.steps}
    view = View(rows, trees, owners, names(home))
    for index, root in enumerate(roots):
        if index:
            yield ""
        formatter = StepFormatter(view, root, row.key)
        yield from draw(trees, root, formatter.line, formatter.shown)
        yield f"o {formatter.start()}"


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
        if row is None:
            return f"{key[:8]}  removed"
        run = self.view.runs.get(key)
        of = f"/{run.step_count}" if run else ""
        parts = [f"{key[:8]}  step {(row.step or 0) + 1}{of}"]
        selected = ["this one"] if key == self.selected else []
        if names := [*self.view.names.get(row.id, []), *selected]:
            parts.append(f"({', '.join(names)})")
        initial = self.settings(self.first).split(", ")
        parts += [part for part in self.settings(row).split(", ") if part not in initial]
        if row.inputs != self.first.inputs:
            parts.append(self.prompt(row))
        parts += [f"frames {one.key[:8]}" for one in self.view.trees.frames.get(key, ())]
        parts.append(units.format_age(self.now - units.parse_timestamp(row.time)))
        return "  ".join(parts)


@click.command("log")
@click.argument("reference", metavar="ENTRY")
@read_only_options
def command(session: Session, reference: str) -> None:
    """Draw a run and its branches as a tree.

    ENTRY is a step, frames or a run. For a text or an image, draws every run that uses it. The
    latest step is on top.
    """
    print_lines(run(reference, session.store))
