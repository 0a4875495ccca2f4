"""Operations on a whole remote: push what it lacks, pull entries with what they need, list and
verify.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from wanpipe.cache.archive import run_of
from wanpipe.cache.listing import Filter, list_entries
from wanpipe.cache.remote.bucket import Bucket, RemoteError, each
from wanpipe.cache.remote.pull import check_files, fetch, list_runs, read_run, record
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
    """Read every entry and record of a run of the remote, and yield the name and the reason of each
    that no cache would take. What is being pushed does not count.
    """
    checks: list[tuple[str, Callable[[], object]]] = [
        (name, partial(verify, bucket, store, name)) for name in list_remote(bucket, list(STAGES))
    ]
    checks += [(record(key), partial(read_run, bucket, key)) for key, _ in list_runs(bucket)]
    with store.report.task("verify", len(checks)) as task:
        for name, check in checks:
            try:
                check()
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
