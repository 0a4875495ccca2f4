"""Finds and publishes entries under one root: cache/<stage>/<key>/. Knows nothing about models.

A rename makes an entry visible; it never changes after that. Locks are the kernel's, so a killed
process holds none.
"""

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from wanpipe.errors import StoreError, UsageError
from wanpipe.runtime.disk import (
    READ_ONLY,
    backup_path,
    fsync,
    fsync_tree,
    make_directory,
    remove_tree,
    replace_directory,
    store_errors,
)
from wanpipe.runtime.report import Report
from wanpipe.store.arrays import METADATA, DamageError
from wanpipe.store.draft import Draft
from wanpipe.store.entry import Entry, read_entry
from wanpipe.store.index import Index
from wanpipe.store.index_file import HashCache, IndexFile
from wanpipe.store.keys import is_key, is_prefix
from wanpipe.store.locks import Locks
from wanpipe.store.recipe import Recipe, build_record
from wanpipe.store.refs import Refs, check_name
from wanpipe.store.remote import Remote
from wanpipe.store.runs import MODELS, ModelReference, Records, Run, Runs, Video
from wanpipe.store.schema import STAGES
from wanpipe.store.scratch import Scratch, crosses_disks, remove_links

Fill = Callable[[Draft], dict[str, Any]]
DAMAGED = ".damaged"


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
        self.remote: Remote | None = None  # of the command that runs
        self.concerning: set[str] = set()  # keys of entries that looked wrong
        index_file = IndexFile(self.root, writes=not read_only)
        self.hash_cache = HashCache(index_file)
        self.index = Index(self.root, index_file)
        self.runs = Runs(self.root, self.index)
        self.models = Records(self.root, MODELS, ModelReference)
        self.names = Refs(self.root / ".names")
        self.pins = Refs(self.root / ".pins")
        self.locks = Locks(self.root, self.report)
        self.scratch = Scratch(self.root, self.locks)

    def path(self, stage: str, key: str) -> Path:
        """Return the path of an entry, which may not exist."""
        return self.root / stage / key

    def has(self, stage: str, key: str) -> bool:
        """Return whether an entry exists, damaged or not, here or in the remote: enough for
        planning.
        """
        here = self.path(stage, key).is_dir()
        return here or (self.remote is not None and self.remote.has(stage, key))

    def is_here(self, stage: str, key: str) -> bool:
        """Return whether an entry exists in the cache, copied from the remote if need be."""
        here = self.path(stage, key).is_dir()
        return here or (self.remote is not None and self.remote.pull(stage, key))

    def must_compute(self, recipe: Recipe) -> bool:
        """Return whether `get_or_create` would compute this entry."""
        return self.force or not self.has(recipe.stage, recipe.key)

    def find(self, stage: str, key: str) -> Entry | None:
        """Return an entry to compute with, every digest checked, or None if it does not exist. A
        damaged one is quarantined, then counts as missing.
        """
        path = self.path(stage, key)
        if not self.is_here(stage, key):
            return None
        if not self.read_only:
            with suppress(OSError):  # in a read-only cache nothing is removed by age either
                os.utime(path)  # time of last use, for gc; no part of the entry
        try:
            return self.open_checked(path)
        except DamageError:
            pass  # another process may have removed or replaced it meanwhile
        try:
            return self.open_checked(path) if path.is_dir() else None
        except DamageError as error:
            self.quarantine(path, error)
            return None

    def peek(self, stage: str, key: str) -> Entry | None:
        """Return an entry to read from, every digest checked, or None if it does not exist. Changes
        nothing. Raises DamageError.
        """
        path = self.path(stage, key)
        return self.open_checked(path) if path.is_dir() else None

    def open_checked(self, path: Path) -> Entry:
        """Read an entry with every digest. Raises DamageError."""
        entry = read_entry(path)
        entry.verify()
        self.check_files(entry)
        return entry

    def check_files(self, entry: Entry) -> None:
        """Check the content hashes of an entry's plain files; the hash cache has those of unchanged
        files.
        """
        for name, digest in entry.files.items():
            file = entry.path / name
            if not file.is_file() or self.hash_cache.hash(file) != digest:
                raise DamageError(f"{file} does not have the content hash it was published with")

    def quarantine(self, path: Path, reason: DamageError) -> None:
        """Move a damaged entry to .damaged/, which nothing reads, and report it."""
        name = f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}"
        folder = self.root / DAMAGED
        try:
            try:
                move_into(folder, path, name)
            except OSError as error:
                if not crosses_disks(error):
                    raise
                folder = path.parent / DAMAGED
                move_into(folder, path, name)
        except FileNotFoundError:
            return  # another process was quicker
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            self.report.remark(f"{reason}; ignored (the cache is read-only)")
            return
        finally:
            found = str(folder / name)
            self.report.event("damaged", stage=path.parent.name, key=path.name, path=found)
        self.report.remark(f"{reason}; set aside in {folder}")

    def get_or_create(self, recipe: Recipe, fill: Fill) -> Entry:
        """Return the published entry of `recipe`; if there is none, make it with `fill`.

        `fill` writes arrays into the draft and returns notes for `made`. One process fills at a
        time, others wait and read. A store with `force` makes the entry again and replaces it.
        """
        with ExitStack() as held:
            draft = self.begin(recipe, fill, held)
            if draft is not None:
                return self.report_entry(self.publish(draft, recipe))
        return self.result(recipe)

    def begin(self, recipe: Recipe, fill: Fill, held: ExitStack) -> Draft | None:
        """Return a filled draft to publish, its lock and folder in `held`, or None if the entry
        exists.
        """
        if self.reuse(recipe):
            return None
        with ExitStack() as holding:
            holding.enter_context(
                self.locks.hold(
                    recipe.stage, recipe.key, lambda: self.has(recipe.stage, recipe.key)
                )
            )
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

    def report_entry(self, entry: Entry) -> Entry:
        """Report a newly published entry."""
        seconds = entry.made.seconds
        self.report.event("computed", **entry.event(), path=str(entry.path), seconds=seconds)
        for concern in entry.made.concerns:
            if entry.parent not in self.concerning:  # else the step before was reported
                self.report.remark(f"{entry.stage} {entry.key[:8]}: {concern}")
            self.concerning.add(entry.key)
        return entry

    def reuse(self, recipe: Recipe) -> Entry | None:
        """Return the published entry of `recipe` and report it; None if there is none, or if this
        store makes everything again.
        """
        entry = None if self.force else self.find(recipe.stage, recipe.key)
        if entry:
            self.report.event("reused", **recipe.event(), path=str(entry.path))
        return entry

    @contextmanager
    def draft(self, recipe: Recipe) -> Iterator[Draft]:
        """Open a draft in .tmp/, which is removed at the end of the block unless the recipe is
        resumable.
        """
        dtype = recipe.material.dtype
        with store_errors(self.root):
            folder = self.scratch.folder(recipe.stage)
            if recipe.resumable:
                make_directory(folder)
                path = folder / f"{recipe.stage}-{recipe.key}"
                remove_links(path)
                yield Draft(path, recipe.stage_spec, dtype)
                return
            with self.scratch.open(folder) as path:
                yield Draft(path, recipe.stage_spec, dtype)

    def publish(self, draft: Draft, recipe: Recipe) -> Entry:
        """Seal a draft, make it durable and visible. An entry that exists already stays."""
        target = self.path(recipe.stage, recipe.key)
        with store_errors(self.root):
            draft.seal(build_record(recipe, draft.made))
            fsync_tree(draft.path)
            self.install(draft.path, target)
        entry = read_entry(target)
        self.index.add(target, entry.record)
        if self.remote is not None:
            self.remote.published(entry)
        return entry

    def install(self, path: Path, target: Path) -> None:
        """Rename a durable draft to the path of its entry; with `force` it replaces an existing
        entry in one step. Across disks a copy beside the entry is renamed.
        """
        make_directory(target.parent)
        try:
            self.rename(path, target)
        except OSError as error:
            if not crosses_disks(error):
                raise
            with self.scratch.beside(path, target) as copy:
                self.rename(copy, target)
        fsync(target.parent)
        with suppress(OSError):  # the next process tries again
            remove_tree(path)
            remove_tree(backup_path(path))

    def rename(self, path: Path, target: Path) -> None:
        """Rename a draft to an entry, which stays if it exists unless the store has `force`."""
        if self.force and target.is_dir():
            replace_directory(path, target, backup_path(path))
            return
        try:
            path.rename(target)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise

    def resolve(self, reference: str) -> Entry:
        """Return the entry of a path, a name or a unique key prefix, to compute with. Raises
        StoreError or UsageError.
        """
        path = self.locate(reference)
        if path.parent.parent == self.root and path.parent.name in STAGES and is_key(path.name):
            entry = self.find(path.parent.name, path.name)
            if entry is not None:
                return entry
            raise StoreError(f"{reference} was damaged; make it again")
        return self.peek_reference(reference)

    def peek_reference(self, reference: str) -> Entry:
        """Return the entry of a reference, to read from. Changes nothing. Raises StoreError or
        UsageError.
        """
        path = self.locate(reference)
        try:
            if path.parent.name in STAGES:
                if path.parent.parent == self.root:
                    self.is_here(path.parent.name, path.name)
                return Store(path.parent.parent, self.report).open_checked(path)
            reason = f"it does not lie in a folder of {', '.join(STAGES)}"
        except DamageError as error:
            reason = str(error)
        raise StoreError(
            f"{reference} is not an entry of a wanpipe cache, or is damaged ({reason}); make it "
            "again"
        )

    def find_run(self, reference: str) -> Run | None:
        """Return the run whose key has a prefix, None if there is none. Raises UsageError if
        several runs have it, or an entry too.
        """
        keys = self.runs.with_prefix(reference)
        entries = list(self.with_prefix(reference)) if keys else []
        if len(keys) + len(entries) > 1:
            listed = ", ".join([*(f"run {key[:12]}" for key in keys), *map(str, entries)][:4])
            raise UsageError(f"{reference} means several ({listed}); give more digits")
        return self.runs.get(keys[0]) if keys else None

    def save_run(self, run: Run) -> None:
        """Save a run and the time its model was used."""
        self.save(self.runs, run)
        self.save_model(run.model)

    def save_model(self, model: ModelReference) -> None:
        """Save the time a model was used."""
        self.save(self.models, model)

    def save_video(self, run: Run, video: Video) -> None:
        """Add a video to the record of its run; save the run if it has no record."""
        if self.save(self.runs, run) and os.access(self.root / ".runs", os.W_OK):
            with self.locks.hold("run", run.key, lambda: True):
                self.runs.add_video(run.key, video)

    def save(self, records: Any, record: Any) -> bool:
        """Save a record; return whether it was saved, since a cache may be read-only."""
        with store_errors(self.root):
            try:
                if not self.read_only:
                    records.save(record)
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                return False
        return not self.read_only

    def locate(self, reference: str) -> Path:
        """Return the directory of a reference without reading it."""
        path = Path(reference)
        if path.is_dir() and (path / METADATA).exists():
            return self.own_path(path)
        if named := self.names.get(reference):
            return self.root / named
        if run := self.find_run(reference):
            return self.runs.last(run)
        found = list(self.with_prefix(reference))
        if not found and self.remote is not None:
            found = [self.root / name for name in self.remote.complete(Path(reference).name)]
        if len(found) > 1:
            listed = ", ".join(f"{child.parent.name}/{child.name[:12]}" for child in found[:4])
            raise UsageError(f"{reference} means {len(found)} entries ({listed}); give more digits")
        if not found:
            stages = ", ".join(list(STAGES)[1:])
            raise StoreError(
                f"no entry {reference} in {self.root}; make it with one of the commands {stages}"
            )
        return found[0]

    def own_path(self, path: Path) -> Path:
        """Return the path of an entry, in one spelling if it is in this store. A stage folder may
        be a link.
        """
        whole = path.resolve()
        for stage in STAGES:
            if whole.parent == (self.root / stage).resolve():
                return self.path(stage, whole.name)
        given = path.absolute()
        return given if given.parent.name in STAGES and is_key(given.name) else whole

    def with_prefix(self, prefix: str) -> Iterator[Path]:
        """Yield the path of every entry whose key starts with `prefix`."""
        for stage in STAGES if is_prefix(prefix) else ():
            folder = self.root / stage
            if is_key(prefix):
                names = [prefix] if (folder / prefix).is_dir() else []
            else:
                # not iterdir: a path for each of 100,000 entries takes four times as long
                names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208
            yield from (folder / name for name in names if name.startswith(prefix) and is_key(name))

    def name(self, name: str, path: Path) -> None:
        """Let `name` stand for the entry at `path`. Raises UsageError if it is not an entry of this
        cache.
        """
        check_name(name)
        if path.parent.parent != self.root:
            raise UsageError(f"a name is for an entry of the cache, got {path}; leave --name out")
        with store_errors(self.root):
            self.names.set(name, f"{path.parent.name}/{path.name}")


def move_into(folder: Path, path: Path, name: str) -> None:
    """Move a path into a folder, which is made if it does not exist."""
    folder.mkdir(exist_ok=True)
    path.rename(folder / name)
