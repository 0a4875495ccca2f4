"""Publishes what was computed: at once, or in another thread behind the next computation.

In order, one at a time; a failure there is raised here.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanpipe.errors import WanpipeError
from wanpipe.store.draft import Draft, LateDraft
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.later import Later
from wanpipe.store.recipe import Recipe, record_of

if TYPE_CHECKING:
    from wanpipe.store.store import Store

WAITING = 3  # entries that may wait for the disk


@dataclass(frozen=True)
class Making:
    """An entry between computation and publication; `held` are its draft and its key's lock."""

    publish: Callable[[Draft, Recipe], Entry]
    recipe: Recipe
    draft: Draft
    made: dict[str, Any]
    held: ExitStack

    def finish(self) -> Entry:
        """Seal and publish; lets go of draft and lock whatever happens."""
        with self.held:
            self.draft.seal(record_of(self.recipe, self.made))
            return self.publish(self.draft, self.recipe)


class Behind:
    """Publishes each entry while the next one is computed, in order.

    Few wait or are being written: as many as let the computation go on while the disk is busy with
    something else for a moment. A failure is raised by the next `obtain` that it is known to, or at
    the end of the context.
    """

    def __init__(self, store: "Store") -> None:
        self.store = store
        self.later: Later[Entry] = Later("publish")

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self.later:
            try:
                self.collect(keep=0)  # after Ctrl-C too: a step that was computed is kept
            except (WanpipeError, OSError):
                if kind is None:
                    raise

    def obtain(self, recipe: Recipe, fill: Callable[[Draft], dict[str, Any]]) -> Entry:
        """Return what the entry of `recipe` will be, as `Store.obtain` does; its record is whole
        when `whole` has returned it.
        """
        started = self.store.start(recipe, fill, LateDraft)
        if isinstance(started, Entry):
            return started
        self.later.add(started.finish)
        self.collect(keep=WAITING)
        return Entry(self.store.path(recipe.stage, recipe.key), record_of(recipe, started.made))

    def collect(self, keep: int) -> None:
        """Wait until no more than `keep` entries are under way, and report those that are there."""
        for entry in self.later.results(keep):
            self.store.tell(entry)

    def whole(self, entry: Entry) -> Entry:
        """Return an entry of `obtain` as it was published."""
        self.collect(keep=0)
        return entry if self.store.dry else read_entry(entry.path)
