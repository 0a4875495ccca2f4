"""Keeps a cache small: chooses what to remove, least useful first, and removes it.

Order: decoded frames, interior steps, ends of runs, images, texts, and converted models only when
asked; within each the least recently used first. Named, pinned and used entries stay, and what a
remaining step was made from stays with it, so that it can still be finished.
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
from wanpipe.runtime.disk import translated
from wanpipe.store.index import Summary
from wanpipe.store.keys import is_key
from wanpipe.store.schema import INTERIOR_RANK, STAGES
from wanpipe.store.scratch import is_free, remove_scratch
from wanpipe.store.store import Store

CLOCK_SKEW = 60.0  # seconds by which the clocks of two machines on one folder may differ


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is wanted of a cache: bytes in all, seconds since the last use, steps of a run to keep.

    `every` keeps every N-th interior step, 0 none of them, None all. `models` says that converted
    models may go too.
    """

    max_bytes: int | None = None
    older_than: float | None = None
    every: int | None = None
    models: bool = False


def read_keep_steps(text: str) -> int:
    """Read --keep-steps: "last" as 0, "every:N" as N. Raises UsageError."""
    if text == "last":
        return 0
    kind, _, number = text.partition(":")
    if kind != "every" or not number.isdecimal() or int(number) < 1:
        raise UsageError(f"keep-steps must be last or every:N, got {text!r}; use every:10")
    return int(number)


class Plan:
    """What would be removed from a store (`removed`, in order), and what stays (`left`)."""

    def __init__(self, store: Store, limits: Limits, now: float | None = None) -> None:
        rows = store.index.read().values()
        self.left = {row.place: row for row in rows if row.readable}
        self.used = {place: last_use(store.root / place) for place in self.left}
        self.kept = protected(store, self.used)
        self.models = limits.models
        parents = {row.parent for row in self.left.values()}
        self.interior = {row.place for row in self.left.values() if row.key in parents}
        self.asked: dict[str, set[str]] = {}  # texts and images of the runs of each step
        for run in store.runs.all():
            for key in run.steps:
                self.asked.setdefault(key, set()).update(run.inputs.values())
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
        """Take interior steps, but every N-th."""
        for row in self.free():
            kept = every and row.step is not None and (row.step + 1) % every == 0
            if row.place in self.interior and not kept:
                self.take(row)

    def expire(self, moment: float) -> None:
        """Take what was last used before a moment."""
        for row in self.free():
            if self.used[row.place] < moment:
                self.take(row)

    def shrink(self, most: int) -> None:
        """Take entries until no more than so many bytes are left."""
        left = self.bytes_left
        for row in self.free():
            if left <= most:
                break
            self.take(row)
            left -= row.bytes

    def free(self) -> Iterator[Summary]:
        """Entries that may go, in order; what only they need comes after them."""
        for row in sorted(self.left.values(), key=self.order):
            asked = self.models or row.stage != "convert"
            if asked and row.place not in self.kept and not self.needed[row.key]:
                yield row

    def take(self, row: Summary) -> None:
        """Choose one entry to remove."""
        del self.left[row.place]
        self.removed.append(row)
        self.needed.subtract(self.needs(row))

    def needs(self, row: Summary) -> Iterable[str]:
        """Keys without which a step could not be continued in any of its runs."""
        if row.stage != "denoise":
            return ()
        return self.asked.get(row.key, set()) | set(row.inputs.values())

    def order(self, row: Summary) -> tuple[int, float, int, str]:
        """How soon an entry goes: by rank, by last use, later steps before earlier ones."""
        rank = INTERIOR_RANK if row.place in self.interior else STAGES[row.stage].rank
        return rank, self.used[row.place], -(row.step or 0), row.key


def forgotten(store: Store, left: Iterable[Summary]) -> list[str]:
    """Keys of the runs of which no step and no frames are left, and that no process at work may
    have just begun.
    """
    keys = {row.key for row in left} | {key for row in left for key in row.inputs.values()}
    since, found = in_use_since(store.root), []
    for run in store.runs.recorded():
        path = store.runs.path(run.key)
        if keys.isdisjoint(run.steps) and last_use(path) < min(since, time.time() - CLOCK_SKEW):
            found.append(run.key)
    return found


def protected(store: Store, used: dict[str, float]) -> set[str]:
    """Entries that have a name or a pin, or were used since a process that is at work began."""
    since = in_use_since(store.root)
    labeled = {*store.names.all().values(), *store.pins.all().values()}
    return labeled | {place for place, moment in used.items() if moment >= since}


def in_use_since(root: Path, besides: Path | None = None) -> float:
    """When the first of the processes now at work on a cache began, in seconds since 1970; draft
    `besides` does not count.
    """
    moments = [float("inf")]
    for file in (root / ".tmp").glob("*.since"):
        with suppress(OSError, ValueError):
            if file.stem != (besides and besides.name) and not is_free(file.with_suffix(".lock")):
                moments.append(float(file.read_text()) - CLOCK_SKEW)
    return min(moments)


def last_use(path: Path) -> float:
    """When an entry was last found, in seconds since 1970; 0 for one that is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def remove(store: Store, rows: Sequence[Summary]) -> list[Summary]:
    """Remove entries, return those that went. One that came into use meanwhile is put back."""
    gone: list[Summary] = []
    with translated(store.root), store.scratch() as scratch:
        scratch.mkdir()
        for row in rows:
            with suppress(FileNotFoundError):
                (store.root / row.place).rename(scratch / row.key)
                gone.append(row)
        since = in_use_since(store.root, besides=scratch)
        for row in [row for row in gone if last_use(scratch / row.key) >= since]:
            with suppress(OSError):  # it was made again already
                (scratch / row.key).rename(store.root / row.place)
            gone.remove(row)
    return gone


def rubbish(store: Store, older_than: float) -> list[Path]:
    """What no one needs: damaged entries, drafts of dead processes, and conversions that nobody has
    gone on with for so many seconds.
    """
    found = sorted((store.root / ".damaged").glob("*"))
    for path in sorted((store.root / ".tmp").glob("*")):
        if is_key(path.name):
            lock = path.with_suffix(".lock")
            dead = not lock.exists() or is_free(lock)
        else:
            lock = store.root / ".locks" / path.name
            idle = time.time() - last_use(path) > older_than
            dead = path.is_dir() and idle and (not lock.exists() or is_free(lock))
        if dead:
            found.append(path)
    return found


def sweep(store: Store, paths: Iterable[Path]) -> None:
    """Remove rubbish, and lock files that nobody holds."""
    with translated(store.root):
        for path in paths:
            remove_scratch(path, store.root) if is_key(path.name) else shutil.rmtree(path)
        for lock in (store.root / ".locks").glob("*"):
            with suppress(Timeout), FileLock(lock, timeout=0):
                lock.unlink(missing_ok=True)  # while it is held, as whoever waits for it expects
