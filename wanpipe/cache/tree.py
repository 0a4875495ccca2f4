"""Draws runs and their branches as a tree, the newest step on top.

Reads only summaries of entries. A removed step is still drawn if steps after it exist.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec import structs

from wanpipe.store.index import Summary

Rows = Mapping[str, Summary]


@dataclass(frozen=True)
class Forest:
    """The steps of a cache by key, the keys of the steps after each, and the frames of each."""

    steps: Mapping[str, Summary]
    after: Mapping[str | None, Sequence[str]]
    frames: Mapping[str, Sequence[Summary]]

    def root(self, key: str) -> str:
        """Return the first step of the run of a step, or the removed step before it."""
        while key in self.steps and (parent := self.steps[key].parent):
            key = parent
        return key

    def roots(self, text: str) -> list[str]:
        """Return the roots of every run with a text or an image."""
        keys = [key for key, row in self.steps.items() if text in row.inputs.values()]
        return sorted({self.root(key) for key in keys}, key=self.started)

    def started(self, root: str) -> str:
        """Return when a run was started."""
        if root in self.steps:
            return self.steps[root].time
        return min(self.steps[key].time for key in self.after[root])

    def branches(self, key: str) -> list[str]:
        """Return the steps after a step; one with the same settings comes first."""
        step = self.steps.get(key)

        def order(follower: str) -> tuple[bool, str]:
            row = self.steps[follower]
            same = step is None or (row.inputs, row.what, row.loras) == (
                step.inputs,
                step.what,
                step.loras,
            )
            return not same, row.time

        return sorted(self.after.get(key, ()), key=order)


def forest(rows: Rows) -> Forest:
    """Build the forest of all steps of a cache. A damaged index file cannot make a cycle of it: a
    step has the next number after its parent.
    """
    frames: dict[str, list[Summary]] = {}
    steps = {row.key: row for row in rows.values() if row.stage == "denoise" and row.readable}
    after: dict[str | None, list[str]] = {}
    for key, row in steps.items():
        parent = steps.get(row.parent or "")
        if parent is not None and row.step != (parent.step or 0) + 1:
            row = steps[key] = structs.replace(row, parent=None)
        after.setdefault(row.parent, []).append(key)
    for row in rows.values():
        if row.stage == "decode" and row.readable:
            frames.setdefault(row.inputs.get("step", ""), []).append(row)
    return Forest(steps, after, frames)


def draw(
    forest: Forest, root: str, line: Callable[[str], str], shown: Callable[[str], bool]
) -> Iterator[str]:
    """Draw the steps from `root` on, the latest on top, as git's graph does.

    `line` formats a step; consecutive steps in the middle of a run that are not `shown` become one
    line.
    """
    trunk: list[tuple[list[str], list[str]]] = []  # runs, and the branches off their last steps
    continued = [root]
    while continued:
        run = linear_run(forest, continued[0])
        branches = forest.branches(run[-1])
        continued = branches[:1]
        trunk.append((run, branches[1:]))
    for run, branches in reversed(trunk):
        for branch in branches:
            yield from ("| " + one for one in draw(forest, branch, line, shown))
            yield "|/"
        hidden: list[str] = []
        for key in reversed(run):
            if key in (run[0], run[-1]) or shown(key):
                yield from fold(hidden)
                hidden = []
                yield f"* {line(key)}"
            else:
                hidden.append(key)
        yield from fold(hidden)


def linear_run(forest: Forest, root: str) -> list[str]:
    """Return the steps from `root` to the next branch or end."""
    run = [root]
    while len(followers := forest.after.get(run[-1], ())) == 1:
        run.append(followers[0])
    return run


def fold(hidden: Sequence[str]) -> Iterator[str]:
    """Yield one line for steps that are not shown."""
    if hidden:
        yield f": {len(hidden)} step{'s' if len(hidden) > 1 else ''}"
