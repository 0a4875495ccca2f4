"""Copies an entry from the remote into a cache.

What comes from outside is data: an entry goes through the checks of an import before it is
installed. The record says which arrays there are, and their metadata say which chunks, so nothing
is listed, and no more is read than they declare.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import structs

from wanpipe.cache.remote.bucket import Bucket, RemoteError, each, has_disk
from wanpipe.cache.validate import InvalidEntryError, check_array, files_of, validate
from wanpipe.errors import StoreError
from wanpipe.runtime.disk import fsync_tree, make_directory, store_errors
from wanpipe.runtime.documents import MAX_BYTES, DocumentError, convert, decode
from wanpipe.runtime.report import Report
from wanpipe.runtime.units import format_si
from wanpipe.store.arrays import METADATA, DamageError, damage_errors, read_metadata
from wanpipe.store.entry import Entry, read_entry, read_group
from wanpipe.store.keys import hash_file, is_key
from wanpipe.store.runs import RUNS, Run, Runs
from wanpipe.store.schema import STAGES, Record
from wanpipe.store.scratch import PULL
from wanpipe.store.store import Store

STEPS = ".steps"  # for each pushed step an object with the key of its run
KEY_BYTES = 32
OVERHEAD = 1 << 20  # bytes that a compressed chunk may have more than its numbers


def pull(bucket: Bucket, store: Store, stage: str, key: str) -> bool:
    """Copy an entry into a cache; return False if the remote has none.

    Raises RemoteError if the remote cannot be read, InvalidEntryError or DamageError if what it has
    is no sound entry. Nothing is installed then.
    """
    prefix = f"{stage}/{key}"
    document = bucket.read(f"{prefix}/{METADATA}", MAX_BYTES)
    if document is None:
        return False
    target = store.path(stage, key)
    with store_errors(store.root):
        if STAGES[stage].exportable:
            with store.scratch.open(store.scratch.folder(stage)) as scratch:
                entry = fetch(bucket, scratch / prefix, document)
                fsync_tree(entry.path)
                store.install(entry.path, target)
        else:
            pull_files(bucket, store, stage, key, document)
        if stage == "denoise":
            pull_run_of(bucket, store, key)
    store.index.add(target, read_entry(target).record)
    return True


def fetch(bucket: Bucket, path: Path, document: bytes) -> Entry:
    """Copy an entry of arrays to stage/key `path`, and check it."""
    prefix = f"{path.parent.name}/{path.name}"
    record = record_of(path, document)
    folders = {name for array in record.digest for name in (array, *parents(array))}
    for name in sorted(folders):
        make_directory(path / name)
        data = bucket.read(f"{prefix}/{name}/{METADATA}", MAX_BYTES)
        if data is None:
            raise InvalidEntryError(f"{prefix}/{name} is missing")
        (path / name / METADATA).write_bytes(data)
    entry = read_entry(path)
    limits: dict[str, int] = {}
    for name in entry.names:
        check_array(entry, name)
        limits[name] = read_metadata(path / name).chunk_bytes + OVERHEAD

    def chunk(file: Path) -> None:
        name = file.parent.relative_to(path).as_posix()
        data = bucket.read(f"{prefix}/{name}/{file.name}", limits[name])
        if data is None:
            raise InvalidEntryError(f"{prefix}/{name}/{file.name} is missing")
        file.write_bytes(data)

    each(chunk, [file for file in files_of(entry) if file.name != METADATA])
    return validate(path)


def record_of(path: Path, document: bytes) -> Record:
    """Write the document of an entry, and return its record. Raises DamageError."""
    make_directory(path)
    (path / METADATA).write_bytes(document)
    with damage_errors(path):
        return convert(read_group(path)[1], Record)


def parents(name: str) -> Iterator[str]:
    """Yield the groups that an array is in, without that of its entry."""
    parent = name.rpartition("/")[0]
    if parent:
        yield parent


def pull_files(bucket: Bucket, store: Store, stage: str, key: str, document: bytes) -> None:
    """Copy a converted model, file by file. What is there of it is kept if this is interrupted."""
    target = store.path(stage, key)
    with store.locks.hold(stage, key, target.is_dir):
        if target.is_dir():
            return
        path = store.scratch.folder(stage) / f"{PULL}{stage}-{key}" / stage / key
        for _ in check_files(bucket, path, document, store.report):
            pass
        fsync_tree(path)
        store.install(path, target)
        for folder in (path.parent, path.parent.parent):
            folder.rmdir()


def check_files(
    bucket: Bucket, path: Path, document: bytes, report: Report | None = None
) -> Iterator[Path]:
    """Copy the plain files of an entry to stage/key `path`, and yield each, checked.

    Raises InvalidEntryError or DamageError, StoreError if the disk has no room.
    """
    prefix = f"{path.parent.name}/{path.name}"
    record_of(path, document)
    entry = read_entry(path)
    if entry.names or entry.stage != path.parent.name:
        raise InvalidEntryError(f"{prefix} is of another stage, or has arrays")
    sizes = {name: bucket.size(f"{prefix}/{name}") for name in entry.files}
    if missing := [name for name, size in sizes.items() if size is None]:
        raise InvalidEntryError(f"{prefix} has no {missing[0]}")
    total = sum(size or 0 for size in sizes.values())
    if not has_disk(path, total):
        raise StoreError(
            f"{prefix} has {format_si(total, 'B')}, more than the disk of {path} has free; free "
            "some or use --cache"
        )
    with (report or Report()).task("pull", len(sizes)) as task:
        for name, digest in entry.files.items():
            bucket.download(f"{prefix}/{name}", path / name, sizes[name] or 0)
            if hash_file(path / name) != digest:
                (path / name).unlink()
                raise DamageError(f"{prefix}/{name} does not have its content hash")
            yield path / name
            task.advance()


def pull_run_of(bucket: Bucket, store: Store, step: str) -> None:
    """Copy the record of the run that a step was pushed with, so that it can be continued."""
    if store.runs.recorded(containing=step):
        return
    key = (bucket.read(f"{STEPS}/{step}", KEY_BYTES) or b"").decode("ascii", "replace")
    if is_key(key):
        pull_run(bucket, store, key)


def pull_run(bucket: Bucket, store: Store, key: str) -> Run | None:
    """Copy the record of a run; return it, None if there is none. Raises InvalidEntryError."""
    data = bucket.read(f"{RUNS}/{key}.json", MAX_BYTES)
    if data is None:
        return None
    with store.scratch.open(store.scratch.folder()) as scratch, invalid(f"{RUNS}/{key}.json"):
        records = Runs(scratch)
        make_directory(records.path(key).parent)
        records.path(key).write_bytes(data)
        decode(data, Run)
        run = structs.replace(records.get(key), videos=[])
    if not store.runs.path(key).exists():
        store.runs.save(run)
    return run


@contextmanager
def invalid(name: str) -> Iterator[None]:
    """Turn errors of a document into InvalidEntryError."""
    try:
        yield
    except RemoteError:
        raise
    except (DocumentError, StoreError, ValueError) as error:
        raise InvalidEntryError(f"{name} is no sound record") from error
