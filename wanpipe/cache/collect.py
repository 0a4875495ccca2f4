"""Collects garbage: removes what `wanpipe.cache.gc` chooses, or lists it without removing."""

from collections.abc import Sequence
from pathlib import Path

from wanpipe.cache.gc import Limits, Plan, forgotten, remove, rubbish, sweep
from wanpipe.runtime.units import amount
from wanpipe.store.index import Summary
from wanpipe.store.store import Store


def collect(store: Store, limits: Limits, dry_run: bool = False) -> list[Path]:
    """Remove entries until a cache is within `limits`, and return the removed paths.

    Also removes what nobody needs: damaged entries, drafts of dead processes, and records of runs
    without an entry. With `dry_run` nothing is removed.
    """
    idle = float("inf") if limits.older_than is None else limits.older_than
    leftovers = rubbish(store, idle)
    plan = Plan(store, limits)
    gone: Sequence[Summary] = plan.removed
    if not dry_run:
        sweep(store, leftovers)
        gone = remove(store, plan.removed) if plan.removed else []
    runs = [store.runs.path(key) for key in forgotten(store, plan.left.values())]
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
            f"{amount(plan.bytes_left, 'B')} left, which is more than --max-size: "
            "entries that are named, pinned or in use are kept, and models without --models"
        )
    return [*leftovers, *runs, *(store.root / row.place for row in gone)]
