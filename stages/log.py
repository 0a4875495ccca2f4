"""log: a run and its branches, as a tree.

Reads: summaries of the cache's entries.
Writes: nothing; the tree goes to stdout.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import click

from wanpipe.cache.listing import said
from wanpipe.cache.tree import Forest, draw, forest
from wanpipe.cli.session import Session, read_only_options
from wanpipe.errors import UsageError
from wanpipe.runtime import units
from wanpipe.store import Run, Store
from wanpipe.store.index import Summary


def run(reference: str, store: Store) -> Iterator[str]:
    """Draw the run that a step belongs to with all its branches, or every run of a text or an
    image, line by line, the latest step on top.
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
        raise UsageError(f"no step in {home.root} belongs to {reference}")
    owners = {step: run for run in reversed(home.runs.all()) for step in run.steps}
    known = Known(rows, trees, owners, labels(home))
    for index, root in enumerate(roots):
        if index:
            yield ""
        yield from tree(trees, root, Teller(known, root, row.key))


def labels(store: Store) -> dict[str, list[str]]:
    """Names and pins by stage/key."""
    found: dict[str, list[str]] = {}
    for name, place in store.names.all().items():
        found.setdefault(place, []).append(name)
    for place in store.pins.all().values():
        found.setdefault(place, []).append("pinned")
    return found


def tree(trees: Forest, root: str, teller: "Teller") -> Iterator[str]:
    """Draw one run and, below it, what it started from."""
    yield from draw(trees, root, teller.line, teller.shown)
    yield f"o {teller.start()}"


@dataclass(frozen=True)
class Known:
    """What is known of a cache: summaries by stage/key, its trees, runs by step, and labels by
    stage/key.
    """

    rows: dict[str, Summary]
    trees: Forest
    runs: dict[str, Run]
    names: dict[str, list[str]]


class Teller:
    """Tells the steps of one tree in words, each only in what is not said at its root."""

    def __init__(self, known: Known, root: str, asked: str) -> None:
        self.rows, self.trees, self.runs = known.rows, known.trees, known.runs
        self.names, self.asked = known.names, asked
        trees = known.trees
        self.first = trees.steps.get(root) or trees.steps[trees.after[root][0]]
        self.now = time.time()

    def what(self, row: Summary) -> str:
        """What a step holds, with the size and LoRAs of its run."""
        return units.plain(said(row, self.runs.get(row.key)))

    def prompt(self, row: Summary) -> str:
        """The prompt of a step in quotation marks, or its key where the text is gone."""
        key = row.inputs.get("text", "")
        text = self.rows.get(f"encode-text/{key}")
        return units.quoted(text.prompt) if text and text.prompt is not None else f"text {key[:8]}"

    def start(self) -> str:
        """What the run began with."""
        run = self.runs.get(self.first.key)
        seed = "noise given" if run is None or run.seed is None else f"seed {run.seed}"
        return f"{seed}, {self.prompt(self.first)}, {self.what(self.first)}"

    def shown(self, key: str) -> bool:
        """Whether a step is worth a line of its own wherever it stands."""
        return key == self.asked or key in self.trees.frames or f"denoise/{key}" in self.names

    def line(self, key: str) -> str:
        """One step: its key, number, names, what differs from the root, frames, age."""
        row = self.trees.steps.get(key)
        if row is None:
            return f"{key[:8]}  removed"
        run = self.runs.get(key)
        of = f"/{run.settings.steps}" if run else ""
        parts = [f"{key[:8]}  step {(row.step or 0) + 1}{of}"]
        labels = [*self.names.get(row.place, []), *(["this one"] if key == self.asked else [])]
        if labels:
            parts.append(f"({', '.join(labels)})")
        known = self.what(self.first).split(", ")
        parts += [part for part in self.what(row).split(", ") if part not in known]
        if row.inputs != self.first.inputs:
            parts.append(self.prompt(row))
        parts += [f"frames {film.key[:8]}" for film in self.trees.frames.get(key, ())]
        parts.append(units.age(self.now - units.seconds_of(row.time)))
        return "  ".join(parts)


@click.command("log", short_help="a run and its branches, as a tree")
@read_only_options
@click.argument("reference", metavar="ENTRY")
def command(session: Session, reference: str) -> None:
    """Draw the run that ENTRY belongs to, with its branches, the latest step on top.

    Of a text or an image, every run.
    """
    for line in run(reference, session.store):
        click.echo(line)
