"""Copies an entry from a cache to the remote: whole or absent there too, and the first one stays.

Every object is written only where none exists, the entry's document last. So of two machines that
push the same key, one writes each object. If what the other has written differs, its entry is left
to it. Only the files of a model are written in any case: the same key stands for the same bytes.
"""

from datetime import UTC, datetime
from pathlib import Path

from msgspec import structs

from wanpipe.cache.archive import check_link
from wanpipe.cache.remote.bucket import Bucket, RemoteError, each
from wanpipe.cache.remote.pull import STEPS, record
from wanpipe.cache.validate import files_of
from wanpipe.runtime.documents import encode
from wanpipe.store.arrays import METADATA
from wanpipe.store.entry import Entry
from wanpipe.store.runs import Run

STALE_SECONDS = 600.0  # after which objects without an entry's document belong to no running push


class BusyError(RemoteError):
    """Another machine is pushing the same entry, with other bits."""


def push(bucket: Bucket, entry: Entry) -> bool:
    """Copy an entry; return False if it is there already. Raises RemoteError."""
    prefix = f"{entry.stage}/{entry.key}"
    if bucket.size(f"{prefix}/{METADATA}") is not None:
        return False
    document, large = entry.path / METADATA, [entry.path / name for name in entry.files]
    files = [path for path in files_of(entry) if path != document]
    for path in (document, *files, *large):
        check_link(path, entry)
    for path in large:
        bucket.upload(f"{prefix}/{path.name}", path)
    made: list[str] = []

    def send(path: Path) -> str | None:
        name = f"{prefix}/{path.relative_to(entry.path).as_posix()}"
        if bucket.put(name, path):
            made.append(name)
            return None
        return None if same(bucket, name, path) else name

    if others := [name for name in each(send, files) if name is not None]:
        if is_stale(bucket, prefix, others) and bucket.size(f"{prefix}/{METADATA}") is None:
            bucket.delete(others)
            others = [name for name in each(send, files) if name is not None]
        if others:
            bucket.delete(made)  # the other machine can finish then
            if bucket.size(f"{prefix}/{METADATA}") is not None:
                return False
            raise BusyError(
                f"{others[0]} has other bits, another machine pushes it; try again later"
            )
    if bucket.put(f"{prefix}/{METADATA}", document):
        return True
    if bucket.size(f"{prefix}/{METADATA}") is None:
        raise RemoteError(f"{bucket.url} refuses {prefix}/{METADATA}; try again")
    return False


def same(bucket: Bucket, name: str, path: Path) -> bool:
    """Return whether an object has the bytes of a file."""
    data = path.read_bytes()
    return bucket.size(name) == len(data) and bucket.read(name, len(data)) == data


def is_stale(bucket: Bucket, prefix: str, names: list[str]) -> bool:
    """Return whether none of these objects below a prefix was written lately."""
    times = [time for path, _, time in bucket.objects(prefix) if path in names]
    return not times or (datetime.now(UTC) - max(times)).total_seconds() > STALE_SECONDS


def push_run(bucket: Bucket, run: Run, step: str, there: set[str]) -> None:
    """Copy the record of a run, and note that a step belongs to it. `there` remembers the records
    that were copied: Google Cloud Storage takes one write of an object a second.

    The paths of videos stay here: they mean nothing elsewhere.
    """
    name = record(run.key)
    if name not in there:
        bucket.put(name, encode(structs.replace(run, videos=[])), replace=True)
        there.add(name)
    bucket.put(f"{STEPS}/{step}", run.key.encode(), replace=True)
