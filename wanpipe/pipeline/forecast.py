"""Tells before anything is computed what a stage will take: memory, arithmetic, and time where
this cache knows the pace of this device.
"""

from statistics import median

from wanpipe.cache.planning import PlanStore
from wanpipe.errors import StoreError
from wanpipe.pipeline.budget import Need
from wanpipe.store import Store
from wanpipe.store.entry import record_at

LATEST = 8  # entries whose pace counts


def tell(component: str, stage: str, need: Need, units: int, store: Store) -> None:
    """Tell of `units` of work that a store which only plans would do with a component."""
    if not isinstance(store, PlanStore) or not units:
        return
    flops, known = need.flops * units, pace(stage, store)
    store.report.event(
        "forecast",
        stage=stage,
        component=component,
        units=units,
        peak_bytes=need.peak,
        flops=flops,
        seconds=round(flops / known, 1) if known else None,
    )


def pace(stage: str, store: PlanStore) -> float | None:
    """Operations per second of this stage's latest entries that this device made; None without."""
    from wanpipe.backend.device import describe

    device, paces = describe(), []
    rows = [row for row in store.summaries.values() if row.stage == stage and row.seconds]
    for row in sorted(rows, key=lambda row: row.time, reverse=True)[:LATEST]:
        try:
            made = record_at(store.root / row.place).made
        except StoreError:
            continue
        if made.device == device and made.flops and made.seconds:
            paces.append(made.flops / made.seconds)
    return median(paces) if paces else None
