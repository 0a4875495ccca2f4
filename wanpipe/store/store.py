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
from wanpipe.runtime import interrupt
from wanpipe.runtime.disk import (
    READ_ONLY,
    aside_of,
    make_folder,
    replace_folder,
    settle,
    sync,
    translated,
)
from wanpipe.runtime.report import Report
from wanpipe.store.arrays import METADATA, DamageError
from wanpipe.store.draft import Draft
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.index import Index
from wanpipe.store.keys import is_key, is_prefix
from wanpipe.store.labels import Labels, check_name
from wanpipe.store.recipe import Recipe, record_of
from wanpipe.store.runs import MODELS, ModelReference, Records, Run, Runs, Video
from wanpipe.store.schema import STAGES
from wanpipe.store.scratch import is_free, remove_scratch
from wanpipe.store.shortcuts import HashCache, Shortcuts

Fill = Callable[[Draft], dict[str, Any]]
POLL = 0.2  # seconds between two looks at an interrupt while another process is waited for


class Store:
    """A cache of entries under `root`, which the first publication creates."""

    def __init__(
        self,
        root: Path | str,
        report: Report | None = None,
        force: bool = False,
        read_only: bool = False,
    ) -> None:
        self.root = Path(root)
        self.report = report or Report()
        self.force = force
        self.read_only = read_only  # for planning: no record, hash or time of use is kept
        shortcuts = Shortcuts(self.root, writes=not read_only)
        self.memo = HashCache(shortcuts)
        self.index = Index(self.root, shortcuts)
        self.runs = Runs(self.root, self.index)
        self.models = Records(self.root, MODELS, ModelReference)
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
        """Return the entry with every digest checked, to compute with it, or None; a damaged one is
        set aside and counts as absent.
        """
        path = self.path(stage, key)
        if not path.is_dir():
            return None
        if not self.read_only:
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

    def peek(self, stage: str, key: str) -> Entry | None:
        """Return the entry with every digest checked, to look at it, or None; changes nothing.
        Raises DamageError.
        """
        path = self.path(stage, key)
        return self.checked(path) if path.is_dir() else None

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
        with ExitStack() as held:
            draft = self.begin(recipe, fill, held)
            if draft is not None:
                return self.tell(self.publish(draft, recipe))
        return self.result(recipe)

    def begin(self, recipe: Recipe, fill: Fill, held: ExitStack) -> Draft | None:
        """Return a filled draft to publish, its lock and folder in `held`, or None where the entry
        is there already.
        """
        if self.reuse(recipe):
            return None
        with ExitStack() as holding:
            holding.enter_context(self.lock(recipe.stage, recipe.key))
            if self.reuse(recipe):
                return None
            started = time.monotonic()
            draft = holding.enter_context(self.draft(recipe))
            draft.made = fill(draft)
            draft.made["seconds"] = round(time.monotonic() - started, 3)
            held.push(holding.pop_all())
        return draft

    def result(self, recipe: Recipe) -> Entry:
        """Return the entry of `recipe` as it was published. Raises DamageError."""
        return read_entry(self.path(recipe.stage, recipe.key))

    def tell(self, entry: Entry) -> Entry:
        """Report an entry that was just published."""
        seconds = entry.made.seconds
        self.report.event("computed", **entry.event(), path=str(entry.path), seconds=seconds)
        return entry

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
        while not lock.is_locked:
            interrupt.check()
            with suppress(Timeout):
                lock.acquire(timeout=POLL)
        try:
            yield
            # whoever waits on this file looks for the entry again, so a published one needs no lock
            # file any more
            if self.has(stage, key):
                Path(lock.lock_file).unlink(missing_ok=True)
        finally:
            lock.release()

    @contextmanager
    def draft(self, recipe: Recipe) -> Iterator[Draft]:
        """Open a draft in .tmp/; whatever ends the block, nothing of it stays there unless the
        recipe is resumable.
        """
        dtype = recipe.material.dtype
        with translated(self.root):
            folder = self.root / ".tmp"
            if recipe.resumable:
                make_folder(folder)
                yield Draft(folder / f"{recipe.stage}-{recipe.key}", recipe.declared, dtype)
                return
            with self.scratch() as path:
                yield Draft(path, recipe.declared, dtype)

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
                remove_scratch(path, self.root)

    def sweep(self) -> None:
        """Remove drafts of processes that are dead: their lock is free, or was lost with the power.
        Once per store.
        """
        if not self.swept:
            self.swept = True
            for path in {file.with_suffix("") for file in (self.root / ".tmp").iterdir()}:
                lock = path.with_suffix(".lock")
                if is_key(path.name) and (not lock.exists() or is_free(lock)):
                    remove_scratch(path, self.root)

    def publish(self, draft: Draft, recipe: Recipe) -> Entry:
        """Seal the draft, make it durable and visible. Where the key is there already, the first
        one stands.
        """
        target = self.path(recipe.stage, recipe.key)
        with translated(self.root):
            draft.seal(record_of(recipe, draft.made))
            settle(draft.path)
            self.place(draft.path, target)
        entry = read_entry(target)
        self.index.add(target, entry.record)
        return entry

    def place(self, path: Path, target: Path) -> None:
        """Rename a settled draft to where its entry belongs; with `force` in the place of the old
        one, which is there until then.
        """
        make_folder(target.parent)
        if self.force and target.is_dir():
            replace_folder(path, target)
        else:
            try:
                path.rename(target)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
        sync(target.parent)
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(aside_of(path), ignore_errors=True)

    def resolve(self, reference: str) -> Entry:
        """Return the entry that a path, a name or a unique key prefix means, to compute with it.
        Raises StoreError or UsageError.
        """
        path = self.locate(reference)
        if path.parent.parent == self.root and path.parent.name in STAGES:
            entry = self.find(path.parent.name, path.name)
            if entry is not None:
                return entry
            raise StoreError(f"{reference} was damaged; make it again")
        return self.look(reference)

    def look(self, reference: str) -> Entry:
        """Return the entry that a reference means, to look at it; changes nothing. Raises
        StoreError or UsageError.
        """
        path = self.locate(reference)
        try:
            if path.parent.name in STAGES:
                return Store(path.parent.parent, self.report).checked(path)
            reason = f"it does not lie in a folder of {', '.join(STAGES)}"
        except DamageError as error:
            reason = str(error)
        raise StoreError(
            f"{reference} is not an entry of a wanpipe cache, or is damaged ({reason}); make it "
            "again"
        )

    def run_of(self, reference: str) -> Run | None:
        """Return the run that a key prefix means, None where it means none. Raises UsageError where
        it means several, or an entry too.
        """
        keys = self.runs.starting_with(reference)
        entries = list(self.starting_with(reference)) if keys else []
        if len(keys) + len(entries) > 1:
            listed = ", ".join([*(f"run {key[:12]}" for key in keys), *map(str, entries)][:4])
            raise UsageError(f"{reference} means several ({listed}); give more digits")
        return self.runs.get(keys[0]) if keys else None

    def keep_run(self, run: Run) -> None:
        """Record a run and the use of its model."""
        self.keep(self.runs, run)
        self.keep_model(run.model)

    def keep_model(self, model: ModelReference) -> None:
        """Record the use of a model."""
        self.keep(self.models, model)

    def keep_video(self, run: Run, video: Video) -> None:
        """Record a video of a run, and the run where it has no record yet."""
        if self.keep(self.runs, run) and os.access(self.root / ".runs", os.W_OK):
            with self.lock("run", run.key):
                self.runs.add_video(run.key, video)
                # as `lock` does for entries: whoever waits reads the record again
                (self.root / ".locks" / f"run-{run.key}").unlink(missing_ok=True)

    def keep(self, records: Any, record: Any) -> bool:
        """Record something; say whether, since a cache that cannot be written keeps no records."""
        with translated(self.root):
            try:
                if not self.read_only:
                    records.keep(record)
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                return False
        return not self.read_only

    def locate(self, reference: str) -> Path:
        """Return the directory that a reference means, without reading it."""
        path = Path(reference)
        if path.is_dir() and (path / METADATA).exists():
            whole = path.resolve()  # as this store names it, where it is one of its own
            own = whole.parent.parent == self.root.resolve()
            return self.path(whole.parent.name, whole.name) if own else whole
        if named := self.names.get(reference):
            return self.root / named
        if run := self.run_of(reference):
            return self.runs.last(run)
        found = list(self.starting_with(reference))
        if len(found) > 1:
            listed = ", ".join(f"{child.parent.name}/{child.name[:12]}" for child in found[:4])
            raise UsageError(f"{reference} means {len(found)} entries ({listed}); give more digits")
        if not found:
            stages = ", ".join(list(STAGES)[1:])
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
