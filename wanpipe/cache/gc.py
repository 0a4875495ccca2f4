"""Garbage collection: selects the least useful entries and removes them.

Order: decoded frames, interior steps, last steps of runs, images, texts, and converted models only
on request; within each the least recently used first. Entries that are named, pinned or in use
stay, and so do the inputs of remaining steps, which can still be resumed.
"""

import errno
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from wanpipe.errors import UsageError
from wanpipe.runtime.disk import NO_SPACE, remove_tree, store_errors
from wanpipe.runtime.documents import read_regular
from wanpipe.store.index import Summary
from wanpipe.store.keys import is_key
from wanpipe.store.locks import FOLDER as LOCKS
from wanpipe.store.locks import is_unlocked
from wanpipe.store.schema import INTERIOR_RANK, STAGES
from wanpipe.store.scratch import FOLDER as SCRATCH
from wanpipe.store.scratch import PULL, own_folders, remove_scratch, stale_drafts
from wanpipe.store.store import DAMAGED, Store

ENTRY_NAME = re.compile(r"[a-z-]+-[0-9a-f]{32}")  # of conversions in .tmp/, and of locks
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
    form = re.fullmatch(r"every:0*([1-9]\d{0,8})", text)
    if form is None:
        raise UsageError(f"keep-steps must be last or every:N, got {text[:40]!r}; use every:10")
    return int(form[1])


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
        self.run_inputs: dict[str, set[str]] = {}  # inputs of the runs of each step
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


def in_use_since(root: Path, besides: Collection[Path] = ()) -> float:
    """Return when the oldest running process on a cache started, in seconds since 1970; drafts
    `besides` do not count.
    """
    moments = [float("inf")]
    for folder in own_folders(root, SCRATCH):
        for file in folder.glob("*.since"):
            draft = file.with_suffix("")
            if draft not in besides and not is_unlocked(draft.with_suffix(".lock")):
                with suppress(OSError, ValueError):  # it ended meanwhile
                    moments.append(float(read_regular(file)) - CLOCK_SKEW)
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
    moved: dict[str, Path] = {}
    with store_errors(store.root), ExitStack() as held:
        folders: dict[Path, Path] = {}
        for row in rows:
            path = store.root / row.id
            try:
                home = store.scratch.folder(row.stage)
                if home not in folders:
                    folders[home] = open_scratch(store, home, held)
                path.rename(folders[home] / row.key)
                moved[row.id] = folders[home] / row.key
            except FileNotFoundError:
                continue  # another process removed it
            except OSError as error:
                if error.errno not in NO_SPACE | {errno.EXDEV}:
                    raise
                if last_use(path) >= in_use_since(store.root, folders.values()):
                    continue
                remove_tree(path)  # on a full disk nothing can be moved
            gone.append(row)
        since = in_use_since(store.root, folders.values())
        for row in [row for row in gone if row.id in moved and last_use(moved[row.id]) >= since]:
            with suppress(OSError):  # it was made again already
                moved[row.id].rename(store.root / row.id)
            gone.remove(row)
    return gone


def open_scratch(store: Store, folder: Path, held: ExitStack) -> Path:
    """Make a directory in a scratch folder, which `held` removes."""
    with ExitStack() as opened:
        scratch = opened.enter_context(store.scratch.open(folder))
        scratch.mkdir()
        held.enter_context(opened.pop_all())
    return scratch


def find_leftovers(store: Store, older_than: float) -> list[Path]:
    """Return quarantined entries, drafts of dead processes, and unfinished conversions and
    pulls that no process has resumed for `older_than` seconds.
    """
    folders = own_folders(store.root, DAMAGED)
    damaged = [path for folder in folders for path in folder.iterdir() if path.is_dir()]
    paused = [path for folder in own_folders(store.root, SCRATCH) for path in folder.iterdir()]
    return [
        *sorted(damaged),
        *stale_drafts(store.root),
        *(
            path
            for path in sorted(paused)
            if ENTRY_NAME.fullmatch(name := path.name.removeprefix(PULL))
            and time.time() - last_use(path) > older_than
            and is_unlocked(store.root / LOCKS / name)
        ),
    ]


def remove_leftovers(store: Store, paths: Iterable[Path]) -> None:
    """Remove leftovers, and lock files that no process holds."""
    with store_errors(store.root):
        for path in paths:
            remove_scratch(path, store.root) if is_key(path.name) else remove_tree(path)
        for folder in own_folders(store.root, LOCKS):
            for lock in folder.iterdir():
                if ENTRY_NAME.fullmatch(lock.name) and not lock.is_symlink() and lock.is_file():
                    with suppress(Timeout), FileLock(lock, timeout=0):
                        lock.unlink(missing_ok=True)  # while it is locked, as in Locks.hold
