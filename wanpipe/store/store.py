"""Finds and publishes entries under one root: cache/<stage>/<key>/. Knows nothing about models.

An entry appears by one rename and never changes. Locks are the kernel's, so a killed process leaves
none behind.
"""

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from wanpipe.errors import StoreError, UsageError
from wanpipe.report import Report
from wanpipe.store.entry import DamageError, Draft, Entry, read_entry
from wanpipe.store.keys import KEY_LENGTH, SCHEMA, key_of
from wanpipe.store.memo import Memo

STAGES = ("convert", "encode-text", "encode-image", "denoise", "decode")
SHORTEST_PREFIX = 4
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an entry will be before it exists: its material gives the key, `inputs` the entries it
    is made from.

    A `resumable` one keeps its unfinished draft, for a `fill` that can go on with it.
    `extra` goes into the record beside them (`step` and `parent` of a denoising step), `made` under
    `made`.
    """

    stage: str
    algorithm: int
    material: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    resumable: bool = False

    @cached_property
    def whole(self) -> dict[str, Any]:
        """The material as it is hashed and stored."""
        head = {"schema": SCHEMA, "stage": self.stage, "algorithm": self.algorithm}
        return {**head, **self.material}

    @cached_property
    def key(self) -> str:
        """The key of the entry."""
        return key_of(self.whole)

    def event(self) -> dict[str, Any]:
        """The fields by which events name this entry."""
        return {"stage": self.stage, "key": self.key, "step": self.extra.get("step")}


class Store:
    """A cache of entries under `root`. Reading needs no write access; the first publication creates
    what is missing.
    """

    dry = False  # whether this store only plans

    def __init__(self, root: Path | str, report: Report | None = None, force: bool = False) -> None:
        self.root = Path(root)
        self.report = report or Report()
        self.force = force
        self.memo = Memo(self.root / ".hashes.json")
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
        try:
            entry = read_entry(path)
            entry.verify()
            self.check_files(entry)
        except DamageError as error:
            self.set_aside(path, error)
            return None
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

    def obtain(self, recipe: Recipe, fill: Callable[[Draft], dict[str, Any]]) -> Entry:
        """Return the entry of `recipe`: the published one, or the one that `fill` writes now.

        `fill` writes arrays into the draft and returns what to note under `made`. One process fills
        at a time, others
        wait and read. A store with `force` makes it again and puts it in the old one's place.
        """
        if found := self.reuse(recipe):
            return found
        with self.lock(recipe.stage, recipe.key):
            if found := self.reuse(recipe):
                return found
            started = time.monotonic()
            with self.draft(recipe) as draft:
                made = fill(draft)
                seconds = round(time.monotonic() - started, 3)
                draft.seal(record_of(recipe, {"seconds": seconds, **made}))
                self.publish(draft, recipe)
        entry = read_entry(self.path(recipe.stage, recipe.key))
        self.report.event("computed", **recipe.event(), path=str(entry.path), seconds=seconds)
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
        with self.translated():
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{stage}-{key}")
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
    def draft(self, recipe: Recipe) -> Iterator[Draft]:
        """Open a draft in .tmp/; whatever ends the block, nothing of it stays there unless the
        recipe is resumable.
        """
        from filelock import FileLock

        folder = self.root / ".tmp"
        with self.translated():
            folder.mkdir(parents=True, exist_ok=True)
            self.sweep(folder)
            if recipe.resumable:
                yield Draft(folder / f"{recipe.stage}-{recipe.key}")
                return
            path = folder / uuid.uuid4().hex
            with FileLock(path.with_suffix(".lock")):
                try:
                    yield Draft(path)
                finally:
                    shutil.rmtree(path, ignore_errors=True)
                    path.with_suffix(".lock").unlink(missing_ok=True)

    def sweep(self, folder: Path) -> None:
        """Remove drafts of processes that were killed: those whose lock is free. Once per store."""
        from filelock import FileLock, Timeout

        if self.swept:
            return
        self.swept = True
        for file in folder.glob("*.lock"):
            try:
                with FileLock(file, timeout=0):
                    shutil.rmtree(file.with_suffix(""), ignore_errors=True)
                    shutil.rmtree(file.with_suffix(".old"), ignore_errors=True)
                    file.unlink(missing_ok=True)
            except Timeout:
                continue

    def publish(self, draft: Draft, recipe: Recipe) -> None:
        """Make the sealed draft durable and visible. Where the key is there already, the first one
        stands.
        """
        target = self.path(recipe.stage, recipe.key)
        settle(draft.path)
        target.parent.mkdir(exist_ok=True)
        if self.force and target.is_dir():
            old = draft.path.with_suffix(".old")
            target.rename(old)
            draft.path.rename(target)
            shutil.rmtree(old)
        else:
            try:
                draft.path.rename(target)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
        sync(target.parent)
        sync(self.root)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what the file system refuses into a StoreError with its remedy."""
        try:
            yield
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StoreError(
                    f"no space left for the cache at {self.root}; free some or use --cache"
                ) from error
            if error.errno in READ_ONLY and str(error.filename or "").startswith(str(self.root)):
                raise StoreError(
                    f"the cache at {self.root} cannot be written ({error.strerror}); use --cache"
                ) from error
            raise

    def resolve(self, reference: str) -> Entry:
        """Return the entry that a path, a name or a unique key prefix means. Raises StoreError or
        UsageError.
        """
        path = self.locate(reference)
        stage, key = path.parent.name, path.name
        home = Store(path.parent.parent, self.report)
        entry = home.find(stage, key) if stage in STAGES else None
        if entry is None:
            raise StoreError(
                f"{reference} is not an entry of a wanpipe cache, or was damaged; make it again"
            )
        return entry

    def locate(self, reference: str) -> Path:
        """Return the directory that a reference means, without reading it."""
        path = Path(reference)
        if path.is_dir() and (path / "zarr.json").exists():
            return path.resolve()
        named = self.names().get(reference)
        if named:
            return self.root / named
        found = [
            child
            for stage in STAGES
            if is_prefix(reference)  # so that nothing else is taken for a pattern
            for child in (self.root / stage).glob(f"{reference}*")
            if len(child.name) == KEY_LENGTH
        ]
        if len(found) > 1:
            listed = ", ".join(f"{child.parent.name}/{child.name[:12]}" for child in found[:4])
            raise UsageError(f"{reference} means {len(found)} entries ({listed}); give more digits")
        if not found:
            stages = ", ".join(STAGES[1:])
            raise StoreError(
                f"no entry {reference} in {self.root}; make it with one of the commands {stages}"
            )
        return found[0]

    def names(self) -> dict[str, str]:
        """All names given with --name, with what they stand for (`stage/key`)."""
        folder = self.root / ".names"
        return (
            {file.name: file.read_text().strip() for file in folder.glob("*")}
            if folder.is_dir()
            else {}
        )

    def name(self, name: str, path: Path) -> None:
        """Let `name` stand for the entry at `path` from now on. Raises UsageError for what is not
        an entry of this cache.
        """
        check_name(name)
        if path.parent.parent != self.root:
            raise UsageError(f"a name is for an entry of the cache, got {path}; leave --name out")
        with self.translated():
            folder = self.root / ".names"
            folder.mkdir(parents=True, exist_ok=True)
            draft = folder / f".{uuid.uuid4().hex}"
            draft.write_text(f"{path.parent.name}/{path.name}\n")
            draft.replace(folder / name)

    def records(self, stage: str) -> Iterator[dict[str, Any]]:
        """Records of all entries of a stage, unchecked: for looking and explaining, never for
        computing.
        """
        for path in (self.root / stage).glob("*/zarr.json"):
            try:
                yield json.loads(path.read_text(encoding="utf-8"))["attributes"]["wanpipe"]
            except (OSError, ValueError, KeyError):
                continue  # damaged or just being removed: whoever needs it will be told


def is_prefix(reference: str) -> bool:
    """Whether a reference can be the beginning of a key."""
    return len(reference) >= SHORTEST_PREFIX and set(reference) <= set("0123456789abcdef")


def check_name(name: str) -> None:
    """Raise UsageError for a name that could be taken for a path or a key."""
    fine = name and all(letter.isalnum() or letter in "-_." for letter in name) and name[0] != "."
    if not fine or is_prefix(name):
        raise UsageError(
            f"a name must be letters, digits, - _ . and not look like a key, got {name!r}; use one "
            "like cat-1"
        )


def record_of(recipe: Recipe, made: dict[str, Any]) -> dict[str, Any]:
    """The record of an entry, less what its draft adds (digest, statistics, seal)."""
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "schema": SCHEMA,
        "stage": recipe.stage,
        "key": recipe.key,
        "material": recipe.whole,
        "inputs": recipe.inputs,
        **recipe.extra,
        "made": {"time": moment, **recipe.made, **made},
    }


def settle(path: Path) -> None:
    """Make a directory tree durable: files read-only and synced, then its directories, innermost
    first.
    """
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            file = Path(folder, name)
            file.chmod(0o444)
            sync(file)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def nearest(recipe: Recipe, records: Iterator[dict[str, Any]] | Sequence[dict[str, Any]]) -> str:
    """Say in words how a missing entry differs from the nearest one: the first field of the
    material that differs.
    """
    wanted = flatten(recipe.whole)
    best: list[tuple[str, Any, Any]] | None = None
    for record in records:
        there = flatten(record["material"])
        differences = [
            (name, there.get(name), wanted.get(name))
            for name in [*wanted, *(set(there) - set(wanted))]
            if there.get(name) != wanted.get(name)
        ]
        if best is None or len(differences) < len(best):
            best = differences
    if not best:
        return f"no {recipe.stage} entry yet"
    name, old, new = best[0]
    return f"{name} {brief(old)} → {brief(new)}"


def flatten(material: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested objects into dotted names."""
    flat: dict[str, Any] = {}
    for name, value in material.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def brief(value: Any) -> str:
    """A value in few letters: hashes and lists cut."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:12]}…"
