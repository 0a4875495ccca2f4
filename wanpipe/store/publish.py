"""Publishes entries in a background thread while the next one is computed: in order, one at a time.

A failure of that thread is raised in the caller, and what was queued behind it is dropped: a step
must not be published without the step before it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from wanpipe.errors import WanpipeError
from wanpipe.runtime.worker import Worker, quick_switches
from wanpipe.store.draft import Draft
from wanpipe.store.entry import Entry
from wanpipe.store.recipe import Recipe

if TYPE_CHECKING:
    from wanpipe.store.store import Store

QUEUE_LIMIT = 3  # entries that may wait for the disk
Fill = Callable[[Draft], dict[str, Any]]


class Publisher:
    """Has the `get_or_create` of a store, but returns once an entry is computed, before it is on
    disk.

    The queue is short: long enough for the computation to continue while the disk is busy for a
    moment. A failure is raised by the next `get_or_create`, or at the end of the context, which
    publishes everything else.
    """

    def __init__(self, store: "Store") -> None:
        self.store = store
        self.worker: Worker[Entry | None] = Worker("publish")
        self.failed = False
        self.ends = ExitStack()

    def __enter__(self) -> "Publisher":
        self.ends.enter_context(quick_switches())
        self.ends.enter_context(self.worker)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self.ends:
            try:
                self.collect(keep=0)  # after Ctrl-C too: a step that was computed is kept
            except (WanpipeError, OSError) as failure:
                if error is None:
                    raise
                if failure is not error:  # two failures: the context raises one, this is the other
                    self.store.report.remark(str(failure))

    @property
    def pending(self) -> bool:
        """Whether an entry is not on disk yet."""
        return any(not job.done() for job in list(self.worker.jobs))

    def get_or_create(self, recipe: Recipe, fill: Fill) -> None:
        """Reuse the entry of `recipe`, or compute it with `fill` and queue it for publication."""
        self.collect(keep=QUEUE_LIMIT)
        with ExitStack() as held:
            draft = self.store.begin(recipe, fill, held)
            if draft is not None:
                self.worker.submit(self.job(draft, recipe, held.pop_all()))
        self.collect(keep=QUEUE_LIMIT)

    def job(self, draft: Draft, recipe: Recipe, held: ExitStack) -> Callable[[], Entry | None]:
        """Return a job that publishes a draft unless an earlier one failed, and unlocks it."""

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
        """Wait until at most `keep` entries are pending, and report the published ones."""
        for entry in self.worker.results(keep):
            if entry is not None:
                self.store.report_entry(entry)
