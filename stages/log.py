"""log: a run and its branches, as a tree.

Reads: summaries of the cache's entries.
Writes: nothing; the tree goes to stdout.
"""

import time
from collections.abc import Iterator

import click

from wanpipe import cli, words
from wanpipe.errors import UsageError
from wanpipe.store import Store
from wanpipe.store.index import Summary
from wanpipe.store.tree import Forest, draw, forest


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
    names = labels(home)
    for index, root in enumerate(roots):
        if index:
            yield ""
        yield from tree(trees, root, Teller(rows, trees, root, names, row.key))


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


class Teller:
    """Tells the steps of one tree in words, each only in what is not said at its root."""

    def __init__(
        self,
        rows: dict[str, Summary],
        trees: Forest,
        root: str,
        names: dict[str, list[str]],
        asked: str,
    ) -> None:
        self.rows, self.trees, self.names, self.asked = rows, trees, names, asked
        self.first = trees.steps.get(root) or trees.steps[trees.after[root][0]]
        self.now = time.time()

    def prompt(self, row: Summary) -> str:
        """The prompt of a step in quotation marks, or its key where the text is gone."""
        key = row.inputs.get("text", "")
        text = self.rows.get(f"encode-text/{key}")
        return words.quoted(text.prompt) if text and text.prompt is not None else f"text {key[:8]}"

    def start(self) -> str:
        """What the run began with."""
        seed = "noise given" if self.first.seed is None else f"seed {self.first.seed}"
        return f"{seed}, {self.prompt(self.first)}, {words.plain(self.first.what)}"

    def shown(self, key: str) -> bool:
        """Whether a step is worth a line of its own wherever it stands."""
        return key == self.asked or key in self.trees.frames or f"denoise/{key}" in self.names

    def line(self, key: str) -> str:
        """One step: its key, number, names, what differs from the root, frames, age."""
        row = self.trees.steps.get(key)
        if row is None:
            return f"{key[:8]}  removed"
        parts = [f"{key[:8]}  step {(row.step or 0) + 1}/{row.steps}"]
        labels = [*self.names.get(row.place, []), *(["this one"] if key == self.asked else [])]
        if labels:
            parts.append(f"({', '.join(labels)})")
        known = self.first.what.split(", ")
        parts += [words.plain(part) for part in row.what.split(", ") if part not in known]
        if row.inputs != self.first.inputs:
            parts.append(self.prompt(row))
        parts += [f"frames {film.key[:8]}" for film in self.trees.frames.get(key, ())]
        parts.append(words.age(self.now - words.seconds_of(row.time)))
        return "  ".join(parts)


@click.command("log", short_help="a run and its branches, as a tree")
@cli.looking
@click.argument("reference", metavar="ENTRY")
def command(session: cli.Session, reference: str) -> None:
    """Draw the run that ENTRY belongs to, with its branches, the latest step on top.

    Of a text or an image, every run.
    """
    for line in run(reference, session.store):
        click.echo(line)
