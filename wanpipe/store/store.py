"""Finds and publishes entries under one root: cache/<stage>/<key>/. Knows nothing about models.

An entry appears by one rename and never changes. Locks are the kernel's, so a killed process leaves
none behind.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from wanpipe.errors import StoreError, UsageError
from wanpipe.report import Report
from wanpipe.store.disk import READ_ONLY, make_folder, settle, sync, translated
from wanpipe.store.draft import Draft
from wanpipe.store.entry import DamageError, Entry, read_entry
from wanpipe.store.index import STAGES, Index
from wanpipe.store.keys import is_key, is_prefix
from wanpipe.store.labels import Labels, check_name
from wanpipe.store.memo import Memo
from wanpipe.store.publish import Behind, Making
from wanpipe.store.recipe import Recipe

Fill = Callable[[Draft], dict[str, Any]]


class Store:
    """A cache of entries under `root`. Reading needs no write access; the first publication creates
    what is missing.
    """

    dry = False  # whether this store only plans

    def __init__(self, root: Path | str, report: Report | None = None, force: bool = False) -> None:
        self.root = Path(root)
        self.report = report or Report()
        self.force = force
        self.memo = Memo(self.root / ".hashes.json", writes=not self.dry)
        self.index = Index(self.root, writes=not self.dry)
        self.names = Labels(self.root / ".names")
        self.pins = Labels(self.root / ".pins")
        self.opened = time.time()
        self.swept = False

    def path(self, stage: str, key: str) -> Path:
        """Where the entry lies, or would lie."""
        return self.root / stage / key

    def has(self, stage: str, key: str) -> bool:
        """Whether an entry is there, damaged or not: enough for planning."""
        return self.path(stage, key).is_dir()

    def wants(self, recipe: Recipe) -> bool:
        """Whether `obtain` would compute this entry."""
        return self.force or not self.has(recipe.stage, recipe.key)

    def find(self, stage: str, key: str) -> Entry | None:
        """Return the entry with every digest checked, or None; a damaged one is set aside and
        counts as absent.
        """
        path = self.path(stage, key)
        if not path.is_dir():
            return None
        with suppress(OSError):  # in a read-only cache nothing is removed by age either
            os.utime(path)  # the time of the last use, for gc; no part of the entry
        try:
            return self.checked(path)
        except DamageError:
            pass  # or another process removed it, or made it again, while it was read
        try:
            return self.checked(path) if path.is_dir() else None
        except DamageError as error:
            self.set_aside(path, error)
            return None

    def checked(self, path: Path) -> Entry:
        """Read an entry with every digest. Raises DamageError."""
        entry = read_entry(path)
        entry.verify()
        self.check_files(entry)
        return entry

    def check_files(self, entry: Entry) -> None:
        """Check the content hashes of an entry's plain files, from memory where they have not
        changed.
        """
        for name, digest in entry.files.items():
            file = entry.path / name
            if not file.is_file() or self.memo.hash(file) != digest:
                raise DamageError(f"{file} does not have the content hash it was published with")

    def set_aside(self, path: Path, reason: DamageError) -> None:
        """Move a damaged entry to .damaged/, where nothing looks for it, and say so."""
        target = self.root / ".damaged" / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}"
        self.report.event("damaged", stage=path.parent.name, key=path.name, path=str(target))
        try:
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        except FileNotFoundError:
            return  # another process was quicker
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            self.report.remark(f"{reason}; ignored (the cache is read-only)")
            return
        self.report.remark(f"{reason}; set aside in {target.parent}")

    def obtain(self, recipe: Recipe, fill: Fill) -> Entry:
        """Return the entry of `recipe`: the published one, or the one that `fill` writes now.

        `fill` writes arrays into the draft and returns what to note under `made`. One process fills
        at a time, others wait and read. A store with `force` makes it again and puts it in the old
        one's place.
        """
        started = self.start(recipe, fill, Draft)
        return started if isinstance(started, Entry) else self.tell(started.finish())

    def start(self, recipe: Recipe, fill: Fill, kind: type[Draft]) -> Entry | Making:
        """Return the published entry, or what is left to do when `fill` has filled a draft."""
        if found := self.reuse(recipe):
            return found
        with ExitStack() as stack:
            stack.enter_context(self.lock(recipe.stage, recipe.key))
            if found := self.reuse(recipe):
                return found
            started = time.monotonic()
            draft = stack.enter_context(self.draft(recipe, kind))
            made = fill(draft)
            made["seconds"] = round(time.monotonic() - started, 3)
            return Making(self.publish, recipe, draft, made, stack.pop_all())

    def tell(self, entry: Entry) -> Entry:
        """Report an entry that was just published."""
        fields = {"stage": entry.stage, "key": entry.key, "step": entry.record.get("step")}
        seconds = entry.made["seconds"]
        self.report.event("computed", **fields, path=str(entry.path), seconds=seconds)
        return entry

    def behind(self) -> "Behind":
        """Give a context whose `obtain` publishes in another thread, behind the next computation.

        All is published when the context ends.
        """
        return Behind(self)

    def reuse(self, recipe: Recipe) -> Entry | None:
        """Return the published entry of `recipe`, and tell so, unless this store makes everything
        again.
        """
        entry = None if self.force else self.find(recipe.stage, recipe.key)
        if entry:
            self.report.event("reused", **recipe.event(), path=str(entry.path))
        return entry

    @contextmanager
    def lock(self, stage: str, key: str) -> Iterator[None]:
        """Hold the lock of one key; say so before waiting for another process."""
        from filelock import FileLock, Timeout

        folder = self.root / ".locks"
        with translated(self.root):
            make_folder(folder)
            # another thread may release it, when it has published
            lock = FileLock(folder / f"{stage}-{key}", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.report.remark(f"another process is making {stage}/{key[:8]}; waiting for it")
                lock.acquire()
        try:
            yield
            # whoever waits on this file looks for the entry again, so a published one needs no lock
            # file any more
            if self.has(stage, key):
                Path(lock.lock_file).unlink(missing_ok=True)
        finally:
            lock.release()

    @contextmanager
    def draft(self, recipe: Recipe, kind: type[Draft] = Draft) -> Iterator[Draft]:
        """Open a draft in .tmp/; whatever ends the block, nothing of it stays there unless the
        recipe is resumable.
        """
        with translated(self.root):
            folder = self.root / ".tmp"
            if recipe.resumable:
                make_folder(folder)
                yield kind(folder / f"{recipe.stage}-{recipe.key}")
                return
            with self.scratch() as path:
                yield kind(path)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a path in .tmp/ under a lock that tells others that this process lives."""
        from filelock import FileLock

        folder = self.root / ".tmp"
        make_folder(folder)
        self.sweep()
        path = folder / uuid.uuid4().hex
        since = path.with_suffix(".since")
        with FileLock(path.with_suffix(".lock"), thread_local=False):
            try:
                since.write_text(f"{self.opened}\n")  # gc leaves alone what was used since then
                yield path
            finally:
                remove_scratch(path)

    def sweep(self) -> None:
        """Remove drafts of processes that are dead: their lock is free, or was lost with the power.
        Once per store.
        """
        if not self.swept:
            self.swept = True
            for path in {file.with_suffix("") for file in (self.root / ".tmp").iterdir()}:
                lock = path.with_suffix(".lock")
                if is_key(path.name) and (not lock.exists() or is_free(lock)):
                    remove_scratch(path)

    def publish(self, draft: Draft, recipe: Recipe) -> Entry:
        """Make the sealed draft durable and visible. Where the key is there already, the first one
        stands.
        """
        target = self.path(recipe.stage, recipe.key)
        settle(draft.path)
        self.place(draft.path, target)
        entry = read_entry(target)
        self.index.add(target, entry.record)
        return entry

    def place(self, path: Path, target: Path) -> None:
        """Rename a settled draft to where its entry belongs."""
        make_folder(target.parent)
        old = path.with_suffix(".old")
        if self.force:
            with suppress(FileNotFoundError):
                target.rename(old)
        try:
            path.rename(target)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def resolve(self, reference: str) -> Entry:
        """Return the entry that a path, a name or a unique key prefix means. Raises StoreError or
        UsageError.
        """
        path = self.locate(reference)
        home = Store(path.parent.parent, self.report)
        entry = home.find(path.parent.name, path.name) if path.parent.name in STAGES else None
        if entry is None:
            raise StoreError(
                f"{reference} is not an entry of a wanpipe cache, or was damaged; make it again"
            )
        return entry

    def locate(self, reference: str) -> Path:
        """Return the directory that a reference means, without reading it."""
        path = Path(reference)
        if path.is_dir() and (path / "zarr.json").exists():
            whole = path.resolve()  # as this store names it, where it is one of its own
            own = whole.parent.parent == self.root.resolve()
            return self.path(whole.parent.name, whole.name) if own else whole
        if named := self.names.get(reference):
            return self.root / named
        found = list(self.starting_with(reference))
        if len(found) > 1:
            listed = ", ".join(f"{child.parent.name}/{child.name[:12]}" for child in found[:4])
            raise UsageError(f"{reference} means {len(found)} entries ({listed}); give more digits")
        if not found:
            stages = ", ".join(STAGES[1:])
            raise StoreError(
                f"no entry {reference} in {self.root}; make it with one of the commands {stages}"
            )
        return found[0]

    def starting_with(self, prefix: str) -> Iterator[Path]:
        """Every entry whose key starts with `prefix`."""
        for stage in STAGES if is_prefix(prefix) else ():
            folder = self.root / stage
            if is_key(prefix):
                names = [prefix] if (folder / prefix).is_dir() else []
            else:
                # not iterdir: a path for each of 100,000 entries takes four times as long
                names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
            yield from (folder / name for name in names if name.startswith(prefix) and is_key(name))

    def name(self, name: str, path: Path) -> None:
        """Let `name` stand for the entry at `path` from now on. Raises UsageError for what is not
        an entry of this cache.
        """
        check_name(name)
        if path.parent.parent != self.root:
            raise UsageError(f"a name is for an entry of the cache, got {path}; leave --name out")
        with translated(self.root):
            self.names.set(name, f"{path.parent.name}/{path.name}")


def is_free(lock: Path) -> bool:
    """Whether no living process holds a lock file."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return True
    except Timeout:
        return False


def remove_scratch(path: Path) -> None:
    """Remove a draft and what belongs to it; the lock last, so that nothing of it is overlooked."""
    for folder in (path, path.with_suffix(".old")):
        shutil.rmtree(folder, ignore_errors=True)
    for suffix in (".since", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
