"""Copies an entry from the remote into a cache.

What comes from outside is data: an entry goes through the checks of an import before it is
installed. The record says which arrays there are, and their metadata say which chunks, so nothing
is listed, and no more is read than they declare.
"""

from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from wanpipe.cache.archive import check_numbers
from wanpipe.cache.remote.bucket import Bucket, each
from wanpipe.cache.validate import InvalidEntryError, check_array, files_of, validate
from wanpipe.runtime.disk import check_free_space, fsync_tree, make_directory, store_errors
from wanpipe.runtime.documents import MAX_BYTES, DocumentError, convert
from wanpipe.runtime.report import Report
from wanpipe.store.arrays import METADATA, DamageError, damage_errors, read_metadata
from wanpipe.store.entry import Entry, read_entry, read_group
from wanpipe.store.keys import hash_file, is_key
from wanpipe.store.runs import RUNS, Run, parse
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
    prefix, target = f"{stage}/{key}", store.path(stage, key)
    document = bucket.read(f"{prefix}/{METADATA}", MAX_BYTES)
    if document is None:
        return False
    with store_errors(store.root):
        if not STAGES[stage].exportable:
            pull_files(bucket, store, stage, key, document)
        else:
            with store.scratch.open(store.scratch.folder(stage)) as scratch:
                entry = fetch(bucket, scratch / prefix, document)
                run = fetch_run(bucket, key) if stage == "denoise" else None
                check_numbers([entry], [run] if run else [])
                fsync_tree(entry.path)
                store.install(entry.path, target)
            if run is not None and not store.runs.path(run.key).exists():
                store.runs.save(run)
    store.index.add(target, read_entry(target).record)
    return True


def fetch(bucket: Bucket, path: Path, document: bytes) -> Entry:
    """Copy an entry of arrays to stage/key `path`, and check it."""
    prefix = f"{path.parent.name}/{path.name}"
    record = record_of(path, document)
    groups = {name.rpartition("/")[0] for name in record.digest} - {""}  # solver/sample is in one
    for name in sorted(groups | set(record.digest)):
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
    check_free_space(path, sum(size or 0 for size in sizes.values()))
    with (report or Report()).task("pull", len(sizes)) as task:
        for name, digest in entry.files.items():
            bucket.download(f"{prefix}/{name}", path / name, sizes[name] or 0)
            if hash_file(path / name) != digest:
                (path / name).unlink()
                raise DamageError(f"{prefix}/{name} does not have its content hash")
            yield path / name
            task.advance()


def fetch_run(bucket: Bucket, step: str) -> Run | None:
    """Return the run that a step was pushed with, so that it can be continued; None if there is
    none. Raises InvalidEntryError for a record that is no such run.
    """
    key = (bucket.read(f"{STEPS}/{step}", KEY_BYTES) or b"").decode("ascii", "replace")
    run = read_run(bucket, key) if is_key(key) else None
    if run is not None and step not in run.steps:
        raise InvalidEntryError(f"{record(key)} has no step {step[:8]}")
    return run


def read_run(bucket: Bucket, key: str) -> Run | None:
    """Return the record of a run, None if there is none. Raises InvalidEntryError for one that is
    not sound.
    """
    data = bucket.read(record(key), MAX_BYTES)
    if data is None:
        return None
    try:
        return structs.replace(parse(data, Run, key), videos=[])
    except DocumentError as error:
        raise InvalidEntryError(f"{record(key)} is no sound record") from error


def record(run: str) -> str:
    """Return the path of the record of a run."""
    return f"{RUNS}/{run}.json"


def list_runs(bucket: Bucket) -> list[tuple[str, float]]:
    """Return the key of every run that has a record, and when that was written, in seconds since
    1970.
    """
    rows = [(path, time.timestamp()) for path, _, time in bucket.objects(RUNS)]
    keys = [(path.removeprefix(f"{RUNS}/").removesuffix(".json"), time) for path, time in rows]
    return [(key, time) for key, time in keys if is_key(key)]
