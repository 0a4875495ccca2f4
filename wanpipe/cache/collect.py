"""Collects garbage: removes what `wanpipe.cache.gc` selects, or only lists it."""

from collections.abc import Sequence
from pathlib import Path

from wanpipe.cache.gc import (
    Limits,
    Plan,
    find_leftovers,
    remove,
    remove_leftovers,
    unreferenced_runs,
)
from wanpipe.runtime.units import format_si
from wanpipe.store.index import Summary
from wanpipe.store.store import Store


def collect(store: Store, limits: Limits, dry_run: bool = False) -> list[Path]:
    """Remove entries until a cache is within `limits`, and return the removed paths.

    Also removes quarantined entries, drafts of dead processes, and records of runs without an
    entry. With `dry_run` nothing is removed.
    """
    idle = float("inf") if limits.older_than is None else limits.older_than
    leftovers = find_leftovers(store, idle)
    plan = Plan(store, limits)
    gone: Sequence[Summary] = plan.removed
    if not dry_run:
        remove_leftovers(store, leftovers)
        gone = remove(store, plan.removed) if plan.removed else []
    runs = [store.runs.path(key) for key in unreferenced_runs(store, plan.left.values())]
    for path in [] if dry_run else runs:
        path.unlink(missing_ok=True)
    store.report.event(
        "collected",
        dry_run=dry_run,
        entries=len(gone),
        bytes=sum(row.bytes for row in gone),
        entries_left=len(plan.left),
        bytes_left=plan.bytes_left,
    )
    if limits.max_bytes is not None and plan.bytes_left > limits.max_bytes:
        store.report.remark(
            f"{format_si(plan.bytes_left, 'B')} left, which is more than --max-size: "
            "entries that are named, pinned or in use are kept, and models without --models"
        )
    return [*leftovers, *runs, *(store.root / row.id for row in gone)]
