"""Operations on a whole remote: push what it lacks, pull entries with what they need, list, verify
and collect.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wanpipe.cache.archive import run_of
from wanpipe.cache.listing import Filter, list_entries
from wanpipe.cache.remote.bucket import Bucket, RemoteError, each
from wanpipe.cache.remote.pull import STEPS as STEP_RUNS
from wanpipe.cache.remote.pull import check_files, fetch
from wanpipe.cache.remote.push import STALE_SECONDS
from wanpipe.cache.remote.tier import ALL, STEPS, Tier, inputs_of, send
from wanpipe.cache.validate import InvalidEntryError
from wanpipe.errors import StoreError
from wanpipe.runtime.documents import MAX_BYTES
from wanpipe.store.arrays import METADATA, DamageError
from wanpipe.store.keys import is_key
from wanpipe.store.schema import ROLES, STAGES
from wanpipe.store.store import Store


def push_missing(
    tier: Tier, store: Store, references: Sequence[str], policy: str | None
) -> Iterator[Path]:
    """Push entries with what they were made from, or without `references` all that a policy names;
    yield the path of each that was missing. Raises RemoteError.
    """
    if tier.bucket.read_only:
        raise RemoteError(
            f"{tier.bucket.url} can only be read; push to s3://, gs://, az:// or file://"
        )
    if references:
        entries = [store.locate(reference) for reference in references]
    else:
        rows = list_entries(store, Filter(steps=policy in (ALL, STEPS)))
        models = policy == ALL
        entries = [store.root / one.row.id for one in rows if models or one.row.stage != "convert"]
    for stage in STAGES:
        tier.expect(stage, [path.name for path in entries if path.parent.name == stage])
    tier.check()
    with store.report.task("push", len(entries)) as task:
        for path in entries:
            entry = store.peek(path.parent.name, path.name)
            if entry is not None:
                yield from (one.path for one in send(tier.bucket, store, entry, tier.there))
            task.advance()


def pull_with_inputs(tier: Tier, store: Store, references: Sequence[str]) -> list[Path]:
    """Pull entries and what they were made from; return the paths of the named ones.

    Raises StoreError for one that neither the cache nor the remote has.
    """
    found = [store.locate(reference) for reference in references]
    waiting = [f"{path.parent.name}/{path.name}" for path in found]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        stage, _, key = name.partition("/")
        entry = store.find(stage, key)
        tier.check()
        if entry is None:
            raise StoreError(
                f"neither {store.root} nor {tier.bucket.url} has a sound {name}; make it again"
            )
        inputs = inputs_of(entry, run_of(entry, store))
        waiting += [f"{ROLES[role]}/{source}" for role, source in inputs.items()]
    return found


def list_remote(bucket: Bucket, stages: Sequence[str]) -> list[str]:
    """Return stage/key of everything that the remote has, or is being pushed to it."""
    found = zip(stages, each(bucket.folders, list(stages)), strict=True)
    return [f"{stage}/{key}" for stage, keys in found for key in sorted(keys) if is_key(key)]


def find_unsound(bucket: Bucket, store: Store) -> Iterator[tuple[str, StoreError]]:
    """Read every entry of the remote, and yield stage/key and the reason of each that no cache
    would take. What is being pushed does not count.
    """
    names = list_remote(bucket, list(STAGES))
    with store.report.task("verify", len(names)) as task:
        for name in names:
            try:
                verify(bucket, store, name)
            except (InvalidEntryError, DamageError) as error:
                yield name, error
            task.advance()


def verify(bucket: Bucket, store: Store, name: str) -> None:
    """Read one entry as a pull does, and keep nothing. Raises InvalidEntryError or DamageError."""
    document = bucket.read(f"{name}/{METADATA}", MAX_BYTES)
    if document is None:
        return
    with store.scratch.open(store.scratch.folder()) as scratch:
        if STAGES[name.partition("/")[0]].exportable:
            fetch(bucket, scratch / name, document)
        else:
            for file in check_files(bucket, scratch / name, document):
                file.unlink()


@dataclass
class Found:
    """The objects of one entry in a listing; `sealed` is the time of its document."""

    paths: list[str] = field(default_factory=list)
    bytes: int = 0
    latest: float = 0.0
    sealed: float | None = None


def collect(
    bucket: Bucket, store: Store, older_than: float | None, models: bool, dry_run: bool
) -> list[str]:
    """Delete entries that were pushed longer than `older_than` seconds ago, and leftovers of pushes
    that never ended; return stage/key of each. Converted models stay without `models`.
    """
    found: dict[str, Found] = defaultdict(Found)
    for stage in STAGES if models else list(STAGES)[1:]:
        for path, size, when in bucket.objects(stage):
            name = "/".join(path.split("/")[:2])
            one = found[name]
            one.paths.append(path)
            one.bytes += size
            one.latest = max(one.latest, when.timestamp())
            if path == f"{name}/{METADATA}":
                one.sealed = when.timestamp()
    now, gone = time.time(), {}
    for name, one in sorted(found.items()):
        age = now - one.latest if one.sealed is None else now - one.sealed
        limit = STALE_SECONDS if one.sealed is None else older_than
        if limit is not None and age > limit:
            gone[name] = one
    if not dry_run:
        for name, one in gone.items():
            # the document first: without it nobody reads the rest
            bucket.delete([f"{name}/{METADATA}"] if one.sealed is not None else [])
            bucket.delete([path for path in one.paths if path != f"{name}/{METADATA}"])
            if name.startswith("denoise/"):
                bucket.delete([f"{STEP_RUNS}/{name.partition('/')[2]}"])
    store.report.event(
        "collected",
        dry_run=dry_run,
        entries=len(gone),
        bytes=sum(one.bytes for one in gone.values()),
        entries_left=len(found) - len(gone),
        bytes_left=sum(one.bytes for name, one in found.items() if name not in gone),
    )
    return list(gone)
