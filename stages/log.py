"""log: draw a run and its branches as a tree.

Reads: summaries of the cache's entries.
Writes: nothing; prints the tree on stdout.
"""

from collections.abc import Iterator

import click

from wanpipe.cache.branches import StepFormatter, View
from wanpipe.cache.tree import draw
from wanpipe.cli.printing import print_lines
from wanpipe.cli.session import Session, read_only_options
from wanpipe.cli.values import REFERENCE
from wanpipe.errors import UsageError
from wanpipe.store import Store


def run(reference: str, store: Store) -> Iterator[str]:
    """Draw the run of a step or of its frames with all its branches, or every run of a text or an
    image, line by line with the latest step on top.

    Raises UsageError for an entry that has no steps.
    """
    path = store.locate(reference)
    home = Store(path.parent.parent, store.report)
    view = View.of(home)
    trees = view.trees
    row = view.rows.get(f"{path.parent.name}/{path.name}")
    if row is None or row.stage == "convert":
        raise UsageError(f"log takes a step, its frames, a text or an image, got {reference}")
    step = row.inputs.get("step", "") if row.stage == "decode" else row.key
    if row.stage.startswith("encode"):
        roots = trees.roots(row.key)
    else:
        roots = [trees.root(step)] if step in trees.steps else []
    if not roots:
        raise UsageError(f"no step in {home.root} was made from {reference}")
    for index, root in enumerate(roots):
        if index:
            yield ""
        formatter = StepFormatter(view, root, row.key)
        yield from draw(trees, root, formatter.line, formatter.shown)
        yield f"o {formatter.start()}"


@click.command("log")
@click.argument("reference", type=REFERENCE, metavar="ENTRY")
@read_only_options
def command(session: Session, reference: str) -> None:
    """Draw a run and its branches as a tree.

    ENTRY is a step, frames or a run. For a text or an image, draws every run that uses it. The
    latest step is on top.
    """
    print_lines(run(reference, session.store))
