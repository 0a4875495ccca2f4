"""Collects the garbage of a remote: entries that were pushed long ago, and what they leave.

As in a cache (`wanpipe.cache.gc`), what a step that stays is continued with is kept, and the record
of a run goes with its last step.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from wanpipe.cache.remote.bucket import Bucket, each
from wanpipe.cache.remote.pull import STEPS, list_runs, read_run, record
from wanpipe.cache.remote.push import STALE_SECONDS
from wanpipe.cache.validate import InvalidEntryError
from wanpipe.store.arrays import METADATA
from wanpipe.store.keys import is_key
from wanpipe.store.runs import Run
from wanpipe.store.schema import ROLES, STAGES
from wanpipe.store.store import Store


@dataclass
class Found:
    """The objects of one entry in a listing; `sealed` is the time of its document."""

    paths: list[str] = field(default_factory=list)
    bytes: int = 0
    latest: float = 0.0
    sealed: float | None = None


def collect(
    bucket: Bucket,
    store: Store,
    older_than: float | None,
    models: bool = False,
    dry_run: bool = False,
    now: float | None = None,
) -> list[str]:
    """Delete entries that were pushed longer than `older_than` seconds ago, leftovers of pushes
    that never ended, and records of runs without a step; return the name of each. Converted models
    stay without `models`.
    """
    now = time.time() if now is None else now
    found = list_found(bucket, list(STAGES) if models else list(STAGES)[1:])
    runs = sound_runs(bucket)
    old = {name for name, one in found.items() if is_old(one, now, older_than)}
    kept = needed((run for run, _ in runs), found.keys() - old)
    gone = sorted(name for name in old if name not in kept or found[name].sealed is None)
    left = {name.partition("/")[2] for name in found.keys() - gone}
    stale = now - STALE_SECONDS  # what is younger may belong to a push that goes on
    records = [record(run.key) for run, at in runs if at < stale and left.isdisjoint(run.steps)]
    if not dry_run:
        # the documents first: without its document nobody reads the rest of an entry
        bucket.delete([f"{name}/{METADATA}" for name in gone if found[name].sealed is not None])
        bucket.delete(
            [path for name in gone for path in found[name].paths if not is_document(path)]
        )
        bucket.delete([*records, *unused_marks(bucket, left, stale)])
    removed = sum(found[name].bytes for name in gone)
    store.report.event(
        "collected",
        dry_run=dry_run,
        entries=len(gone),
        bytes=removed,
        entries_left=len(found) - len(gone),
        bytes_left=sum(one.bytes for one in found.values()) - removed,
    )
    return [*records, *gone]


def list_found(bucket: Bucket, stages: Collection[str]) -> dict[str, Found]:
    """Return the objects of each entry of some stages, by stage/key. What has no key is not
    wanpipe's.
    """
    found: dict[str, Found] = defaultdict(Found)
    for stage in stages:
        for path, size, when in bucket.objects(stage):
            name = "/".join(path.split("/")[:2])
            if not is_key(name.rpartition("/")[2]):
                continue
            one = found[name]
            one.paths.append(path)
            one.bytes += size
            one.latest = max(one.latest, when.timestamp())
            if path == f"{name}/{METADATA}":
                one.sealed = when.timestamp()
    return found


def is_old(one: Found, now: float, older_than: float | None) -> bool:
    """Return whether an entry was pushed longer than `older_than` seconds ago, or is what a push
    that never ended has left.
    """
    if one.sealed is None:
        return now - one.latest > STALE_SECONDS
    return older_than is not None and now - one.sealed > older_than


def is_document(path: str) -> bool:
    """Return whether an object is the document of an entry: stage/key/zarr.json."""
    return path.endswith(f"/{METADATA}") and path.count("/") == 2


def sound_runs(bucket: Bucket) -> list[tuple[Run, float]]:
    """Return every run that has a sound record, and when that was written, in seconds since 1970;
    `wanpipe cache verify --remote` reports the others.
    """

    def read(key: str) -> Run | None:
        try:
            return read_run(bucket, key)
        except InvalidEntryError:
            return None

    listed = list_runs(bucket)
    runs = each(read, [key for key, _ in listed])
    return [(run, at) for run, (_, at) in zip(runs, listed, strict=True) if run is not None]


def needed(runs: Iterable[Run], names: Collection[str]) -> set[str]:
    """Return stage/key of what the steps among `names` are continued with."""
    return {
        f"{ROLES[role]}/{key}"
        for run in runs
        if any(f"denoise/{step}" in names for step in run.steps)
        for role, key in run.inputs.items()
    }


def unused_marks(bucket: Bucket, left: Collection[str], stale: float) -> list[str]:
    """Return the objects that name the run of a step which is not there."""
    found = [(path, time.timestamp()) for path, _, time in bucket.objects(STEPS)]
    return [path for path, at in found if at < stale and path.rpartition("/")[2] not in left]
