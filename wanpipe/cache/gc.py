"""Garbage collection: selects the least useful entries and removes them.

Order: decoded frames, interior steps, last steps of runs, images, texts, and converted models only
on request; within each the least recently used first. Entries that are named, pinned or in use
stay, and so do the inputs of remaining steps, which can still be resumed.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from wanpipe.errors import UsageError
from wanpipe.runtime.disk import store_errors
from wanpipe.store.index import Summary
from wanpipe.store.keys import is_key
from wanpipe.store.schema import INTERIOR_RANK, STAGES
from wanpipe.store.scratch import is_unlocked, remove_scratch
from wanpipe.store.store import Store

CLOCK_SKEW = 60.0  # seconds by which the clocks of two machines on one folder may differ


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a cache: bytes in all, seconds since the last use, steps of a run to keep.

    `every` keeps every N-th interior step, 0 none of them, None all. With `models` converted models
    may be removed too.
    """

    max_bytes: int | None = None
    older_than: float | None = None
    every: int | None = None
    models: bool = False


def parse_keep_steps(text: str) -> int:
    """Parse --keep-steps: "last" as 0, "every:N" as N. Raises UsageError."""
    if text == "last":
        return 0
    kind, _, number = text.partition(":")
    if kind != "every" or not number.isdecimal() or int(number) < 1:
        raise UsageError(f"keep-steps must be last or every:N, got {text!r}; use every:10")
    return int(number)


class Plan:
    """The entries that gc removes from a store (`removed`, in order) and keeps (`left`)."""

    def __init__(self, store: Store, limits: Limits, now: float | None = None) -> None:
        rows = store.index.read().values()
        self.left = {row.id: row for row in rows if row.readable}
        self.used = {entry_id: last_use(store.root / entry_id) for entry_id in self.left}
        self.kept = protected(store, self.used)
        self.models = limits.models
        parents = {row.parent for row in self.left.values()}
        self.interior = {row.id for row in self.left.values() if row.key in parents}
        self.run_inputs: dict[str, set[str]] = {}  # texts and images of the runs of each step
        for run in store.runs.all():
            for key in run.steps:
                self.run_inputs.setdefault(key, set()).update(run.inputs.values())
        self.needed = Counter(key for row in self.left.values() for key in self.needs(row))
        self.removed: list[Summary] = []
        if limits.every is not None:
            self.thin(limits.every)
        if limits.older_than is not None:
            self.expire((time.time() if now is None else now) - limits.older_than)
        if limits.max_bytes is not None:
            self.shrink(limits.max_bytes)

    @property
    def bytes_left(self) -> int:
        """Bytes of the entries that stay."""
        return sum(row.bytes for row in self.left.values())

    def thin(self, every: int) -> None:
        """Select interior steps except every N-th."""
        for row in self.free():
            kept = every and row.step is not None and (row.step + 1) % every == 0
            if row.id in self.interior and not kept:
                self.select(row)

    def expire(self, cutoff: float) -> None:
        """Select entries last used before `cutoff`."""
        for row in self.free():
            if self.used[row.id] < cutoff:
                self.select(row)

    def shrink(self, max_bytes: int) -> None:
        """Select entries until at most `max_bytes` are left."""
        left = self.bytes_left
        for row in self.free():
            if left <= max_bytes:
                break
            self.select(row)
            left -= row.bytes

    def free(self) -> Iterator[Summary]:
        """Yield the removable entries in order; an entry comes after those that need it."""
        for row in sorted(self.left.values(), key=self.order):
            removable = self.models or row.stage != "convert"
            if removable and row.id not in self.kept and not self.needed[row.key]:
                yield row

    def select(self, row: Summary) -> None:
        """Select one entry for removal."""
        del self.left[row.id]
        self.removed.append(row)
        self.needed.subtract(self.needs(row))

    def needs(self, row: Summary) -> Iterable[str]:
        """Return the keys of the inputs that a step needs to be resumed in its runs."""
        if row.stage != "denoise":
            return ()
        return self.run_inputs.get(row.key, set()) | set(row.inputs.values())

    def order(self, row: Summary) -> tuple[int, float, int, str]:
        """Return a sort key: by rank, by last use, later steps before earlier ones."""
        rank = INTERIOR_RANK if row.id in self.interior else STAGES[row.stage].gc_rank
        return rank, self.used[row.id], -(row.step or 0), row.key


def unreferenced_runs(store: Store, left: Iterable[Summary]) -> list[str]:
    """Return the keys of runs without steps or frames, unless a running process may have just
    started them.
    """
    keys = {row.key for row in left} | {key for row in left for key in row.inputs.values()}
    since, found = in_use_since(store.root), []
    for run in store.runs.recorded():
        path = store.runs.path(run.key)
        if keys.isdisjoint(run.steps) and last_use(path) < min(since, time.time() - CLOCK_SKEW):
            found.append(run.key)
    return found


def protected(store: Store, used: dict[str, float]) -> set[str]:
    """Return the entries that have a name or a pin, or may be in use by a running process."""
    since = in_use_since(store.root)
    named = {*store.names.all().values(), *store.pins.all().values()}
    return named | {entry_id for entry_id, cutoff in used.items() if cutoff >= since}


def in_use_since(root: Path, besides: Path | None = None) -> float:
    """Return when the oldest running process on a cache started, in seconds since 1970; draft
    `besides` does not count.
    """
    moments = [float("inf")]
    for file in (root / ".tmp").glob("*.since"):
        with suppress(OSError, ValueError):
            if file.stem != (besides and besides.name) and not is_unlocked(
                file.with_suffix(".lock")
            ):
                moments.append(float(file.read_text()) - CLOCK_SKEW)
    return min(moments)


def last_use(path: Path) -> float:
    """Return when an entry was last used, in seconds since 1970; 0 if it was removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def remove(store: Store, rows: Sequence[Summary]) -> list[Summary]:
    """Remove entries and return them. One that came into use meanwhile is moved back."""
    gone: list[Summary] = []
    with store_errors(store.root), store.scratch() as scratch:
        scratch.mkdir()
        for row in rows:
            with suppress(FileNotFoundError):
                (store.root / row.id).rename(scratch / row.key)
                gone.append(row)
        since = in_use_since(store.root, besides=scratch)
        for row in [row for row in gone if last_use(scratch / row.key) >= since]:
            with suppress(OSError):  # it was made again already
                (scratch / row.key).rename(store.root / row.id)
            gone.remove(row)
    return gone


def find_leftovers(store: Store, older_than: float) -> list[Path]:
    """Return quarantined entries, drafts of dead processes, and unfinished conversions that no
    process has resumed for so many seconds.
    """
    found = sorted((store.root / ".damaged").glob("*"))
    for path in sorted((store.root / ".tmp").glob("*")):
        if is_key(path.name):
            lock = path.with_suffix(".lock")
            dead = not lock.exists() or is_unlocked(lock)
        else:
            lock = store.root / ".locks" / path.name
            idle = time.time() - last_use(path) > older_than
            dead = path.is_dir() and idle and (not lock.exists() or is_unlocked(lock))
        if dead:
            found.append(path)
    return found


def remove_leftovers(store: Store, paths: Iterable[Path]) -> None:
    """Remove leftovers, and lock files that no process holds."""
    with store_errors(store.root):
        for path in paths:
            remove_scratch(path, store.root) if is_key(path.name) else shutil.rmtree(path)
        for lock in (store.root / ".locks").glob("*"):
            with suppress(Timeout), FileLock(lock, timeout=0):
                lock.unlink(missing_ok=True)  # while it is locked, as in Store.lock
