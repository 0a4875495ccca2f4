"""Runs and their branches as a tree: which step followed which, newest on top.

Knows summaries of entries alone; a step that was removed is still known by those that followed it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from wanpipe.store.index import Summary

Rows = Mapping[str, Summary]


@dataclass(frozen=True)
class Forest:
    """The steps of a cache by key, the keys that follow each, and the frames decoded of each."""

    steps: Mapping[str, Summary]
    after: Mapping[str | None, Sequence[str]]
    frames: Mapping[str, Sequence[Summary]]

    def root(self, key: str) -> str:
        """The first step of the run that a step belongs to, or the removed one before it."""
        seen = {key}
        while key in self.steps and (parent := self.steps[key].parent) and parent not in seen:
            key = parent
            seen.add(key)
        return key

    def roots(self, text: str) -> list[str]:
        """The roots of every run with a text or an image."""
        keys = [key for key, row in self.steps.items() if text in row.inputs.values()]
        return sorted({self.root(key) for key in keys}, key=self.started)

    def started(self, root: str) -> str:
        """When a run was begun."""
        if root in self.steps:
            return self.steps[root].time
        return min(self.steps[key].time for key in self.after[root])

    def branches(self, key: str) -> list[str]:
        """The steps after one, that which goes on as it was before first."""
        there = self.steps.get(key)

        def order(follower: str) -> tuple[bool, str]:
            row = self.steps[follower]
            same = there is None or (row.inputs, row.what, row.loras) == (
                there.inputs,
                there.what,
                there.loras,
            )
            return not same, row.time

        return sorted(self.after.get(key, ()), key=order)


def forest(rows: Rows) -> Forest:
    """Arrange the summaries of a cache."""
    steps: dict[str, Summary] = {}
    after: dict[str | None, list[str]] = {}
    frames: dict[str, list[Summary]] = {}
    for row in rows.values():
        if row.stage == "denoise" and row.readable:
            steps[row.key] = row
            after.setdefault(row.parent, []).append(row.key)
        elif row.stage == "decode" and row.readable:
            frames.setdefault(row.inputs.get("step", ""), []).append(row)
    return Forest(steps, after, frames)


def draw(
    forest: Forest, root: str, line: Callable[[str], str], shown: Callable[[str], bool]
) -> Iterator[str]:
    """Draw the steps from `root` on, the latest on top, as git's graph does.

    `line` tells a step in words; steps in the middle of a run that need not be `shown` become one
    line.
    """
    passed = stretch(forest, root)
    tip = passed[-1]
    for index, branch in enumerate(forest.branches(tip)):
        lines = draw(forest, branch, line, shown)
        if index == 0:
            yield from lines
        else:
            yield from ("| " + one for one in lines)
            yield "|/"
    hidden: list[str] = []
    for key in reversed(passed):
        if key in (root, tip) or shown(key):
            yield from fold(hidden)
            hidden = []
            yield f"* {line(key)}"
        else:
            hidden.append(key)
    yield from fold(hidden)


def stretch(forest: Forest, root: str) -> list[str]:
    """The steps from `root` to the next branching or end."""
    passed = [root]
    while len(followers := forest.after.get(passed[-1], ())) == 1:
        passed.append(followers[0])
    return passed


def fold(hidden: Sequence[str]) -> Iterator[str]:
    """One line for steps that are not shown."""
    if hidden:
        yield f": {len(hidden)} step{'s' if len(hidden) > 1 else ''}"
