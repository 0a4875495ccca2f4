"""Publishes entries in another thread, behind the next computation: in order, one at a time.

A failure there is raised here, and what was queued behind it is dropped: a step must not appear
where the one before it was refused.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from wanpipe.errors import WanpipeError
from wanpipe.store.draft import Draft
from wanpipe.store.entry import Entry
from wanpipe.store.later import Later
from wanpipe.store.recipe import Recipe

if TYPE_CHECKING:
    from wanpipe.store.store import Store

WAITING = 3  # entries that may wait for the disk
Fill = Callable[[Draft], dict[str, Any]]


class Publisher:
    """Gives `obtain` as a store does, but returns when an entry is computed, before it is on disk.

    Few wait or are being written: as many as let the computation go on while the disk is busy with
    something else for a moment. A failure is raised by the next `obtain` that it is known to, or at
    the end of the context; all else is published when the context ends.
    """

    def __init__(self, store: "Store") -> None:
        self.store = store
        self.later: Later[Entry | None] = Later("publish")
        self.failed = False

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self.later:
            try:
                self.collect(keep=0)  # after Ctrl-C too: a step that was computed is kept
            except (WanpipeError, OSError) as failure:
                if error is None:
                    raise
                if failure is not error:  # two failures: the context raises one, this is the other
                    self.store.report.remark(str(failure))

    def obtain(self, recipe: Recipe, fill: Fill) -> None:
        """Reuse the entry of `recipe`, or compute it with `fill` and queue its publication."""
        self.collect(keep=WAITING)
        with ExitStack() as held:
            draft = self.store.begin(recipe, fill, held)
            if draft is not None:
                self.later.add(self.job(draft, recipe, held.pop_all()))
        self.collect(keep=WAITING)

    def job(self, draft: Draft, recipe: Recipe, held: ExitStack) -> Callable[[], Entry | None]:
        """Return what publishes one draft, unless one before it failed; lets go of its lock."""

        def publish() -> Entry | None:
            with held:
                if self.failed:
                    return None
                try:
                    return self.store.publish(draft, recipe)
                except BaseException:
                    self.failed = True
                    raise

        return publish

    def collect(self, keep: int) -> None:
        """Wait until no more than `keep` entries are under way, and report those published."""
        for entry in self.later.results(keep):
            if entry is not None:
                self.store.tell(entry)
