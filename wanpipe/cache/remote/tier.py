"""The remote tier of a store: looks up what the cache lacks, and pushes behind the computation.

A remote that fails never ends a run. It is reported once and left out from then on; `wanpipe cache
push` sends the rest later.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from wanpipe.cache.archive import run_of
from wanpipe.cache.remote.bucket import Bucket, ReadOnlyError, RemoteError, each
from wanpipe.cache.remote.pull import pull
from wanpipe.cache.remote.push import push, push_run
from wanpipe.cache.validate import InvalidEntryError
from wanpipe.errors import StoreError
from wanpipe.runtime.worker import Worker
from wanpipe.store.arrays import METADATA, DamageError
from wanpipe.store.entry import Entry
from wanpipe.store.keys import is_key, is_prefix
from wanpipe.store.runs import Run
from wanpipe.store.schema import ROLES, STAGES
from wanpipe.store.store import Store

ALL, STEPS, NONE = "all", "steps", "none"
RESULTS = "results"  # texts, images, videos, frames, and the last step of each run
LOOK_AGAIN_SECONDS = 600.0  # until a key that was missing is looked up again


class Tier:
    """The remote at a URL, and what of a store is pushed to it."""

    def __init__(self, url: str, policy: str, store: Store) -> None:
        self.bucket, self.policy = Bucket(url), policy
        self.store, self.report = store, store.report
        self.worker: Worker[None] = Worker("push")
        self.there: set[str] = set()  # stage/key of what the remote has
        self.missing: dict[str, float] = {}  # when the remote did not have a stage/key
        self.waiting: dict[str, Entry] = {}  # the last step of each run, until it has a successor
        self.failure: StoreError | None = None
        self.failing = threading.Lock()

    def has(self, stage: str, key: str) -> bool:
        """Return whether the remote has an entry."""
        self.expect(stage, [key])
        return f"{stage}/{key}" in self.there

    def expect(self, stage: str, keys: Sequence[str]) -> None:
        """Look up many keys at once, but those that are known."""
        now = time.monotonic()
        names = [f"{stage}/{key}" for key in keys]
        names = [
            name
            for name in names
            if name not in self.there
            and now - self.missing.get(name, -LOOK_AGAIN_SECONDS) >= LOOK_AGAIN_SECONDS
        ]
        if self.failure is not None or not names:
            return
        try:
            sizes = each(lambda name: self.bucket.size(f"{name}/{METADATA}"), names)
        except RemoteError as error:
            self.fail(error)
            return
        for name, size in zip(names, sizes, strict=True):
            if size is None:
                self.missing[name] = now
            else:
                self.there.add(name)

    def pull(self, stage: str, key: str) -> bool:
        """Copy an entry into the cache. One that is not sound is reported and not taken."""
        if not self.has(stage, key):
            return False
        try:
            found = pull(self.bucket, self.store, stage, key)
        except (InvalidEntryError, DamageError) as error:
            self.report.remark(
                f"{self.bucket.url} has an unsound {stage}/{key[:8]}, ignored ({error})"
            )
            found = False
        except RemoteError as error:
            self.fail(error)
            return False
        if not found:
            self.there.discard(f"{stage}/{key}")
            self.missing[f"{stage}/{key}"] = time.monotonic()
        else:
            self.report.event("pulled", stage=stage, key=key, path=str(self.store.path(stage, key)))
        return found

    def complete(self, prefix: str) -> list[str]:
        """Return stage/key of every entry whose key starts with a prefix."""
        if self.failure is not None or not is_prefix(prefix):
            return []
        if is_key(prefix):  # a web server has no listing
            return [f"{stage}/{prefix}" for stage in STAGES if self.has(stage, prefix)]
        try:
            found = each(self.bucket.folders, list(STAGES))
        except RemoteError as error:
            self.fail(error)
            return []
        return [
            f"{stage}/{name}"
            for stage, names in zip(STAGES, found, strict=True)
            for name in names
            if name.startswith(prefix) and self.has(stage, name)
        ]

    def published(self, entry: Entry) -> None:
        """Queue an entry, if the policy says so."""
        unwanted = self.policy == NONE or (entry.stage == "convert" and self.policy != ALL)
        if unwanted or self.bucket.read_only:
            return
        if entry.stage == "denoise" and self.policy == RESULTS:
            self.waiting.pop(entry.parent or "", None)
            self.waiting[entry.key] = entry
            return
        self.flush()
        self.queue(entry)

    def flush(self) -> None:
        """Queue the last steps."""
        while self.waiting:
            self.queue(self.waiting.pop(next(iter(self.waiting))))

    def queue(self, entry: Entry) -> None:
        """Push an entry and what it was made from, in the background."""
        self.worker.submit(partial(self.send, entry))

    def send(self, entry: Entry) -> None:
        """Push an entry after its inputs, unless the remote has failed."""
        if self.failure is not None or self.bucket.read_only:
            return
        try:
            send(self.bucket, self.store, entry, self.there)
        except ReadOnlyError as error:
            self.report.remark(str(error))
        except StoreError as error:
            self.fail(error)

    def fail(self, error: StoreError) -> None:
        """Report that the remote failed, once; it is left out from now on."""
        with self.failing:
            first, self.failure = self.failure is None, self.failure or error
        if first:
            self.report.remark(
                f"{error}; going on without it, `wanpipe cache push` sends what is missing"
            )

    def check(self) -> None:
        """Raise the error with which the remote failed, if it did."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Wait until everything is pushed."""
        self.flush()
        pending = len(self.worker.jobs)
        with self.report.task("push", pending) as task:
            for _ in self.worker.results(0):
                task.advance()


def send(bucket: Bucket, store: Store, entry: Entry, there: set[str]) -> list[Entry]:
    """Push an entry, before it what it was made from, and the record of its run.

    `there` remembers what the remote has. Returns the entries that were pushed. Raises RemoteError.
    """
    sent: list[Entry] = []
    if f"{entry.stage}/{entry.key}" in there:
        return sent
    run = run_of(entry, store)
    for role, key in inputs_of(entry, run).items():
        if f"{ROLES[role]}/{key}" not in there:
            source = store.peek(ROLES[role], key)
            if source is not None:
                sent += send(bucket, store, source, there)
    if run is not None:
        push_run(bucket, run, entry.key, there)
    if push(bucket, entry):
        sent.append(entry)
    there.add(f"{entry.stage}/{entry.key}")
    return sent


def inputs_of(entry: Entry, run: Run | None) -> dict[str, str]:
    """Return the keys of what an entry was made from, and what its run is continued with, by
    role.
    """
    return {**entry.inputs, **(run.inputs if run else {})}


@contextmanager
def opened(url: str, policy: str | None, store: Store) -> Iterator[None]:
    """Give a store the remote at a URL for the time of a command. Raises UsageError for a URL that
    cannot be one.
    """
    tier = Tier(url, policy or RESULTS, store)
    store.remote = tier
    with tier.worker:
        try:
            yield
            tier.close()
        except BaseException:
            tier.failure = tier.failure or RemoteError("the command ended")  # push no more
            raise
        finally:
            store.remote = None
