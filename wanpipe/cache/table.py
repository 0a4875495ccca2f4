"""Formats entries and disk usage as tables for a terminal."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from wanpipe.cache.listing import ListedEntry
from wanpipe.runtime import units
from wanpipe.runtime.text import printable


def entry_table(rows: Sequence[ListedEntry]) -> str:
    """Format entries and runs in columns: key, stage, description, size, age, names,
    video."""
    now = time.time()
    return (
        units.format_table([columns(row, now) for row in rows], frozenset({3, 4})) if rows else ""
    )


def columns(one: ListedEntry, now: float) -> tuple[str, ...]:
    """Format one entry or run; `now` is in seconds since 1970."""
    row, run, what = one.row, one.run, printable(one.what)
    if row.step is not None:
        seed = "given noise" if run is None or run.seed is None else f"seed {run.seed}"
        of = f"/{run.step_count}" if run else ""
        what = f"{seed}, step {row.step + 1}{of}, {what}"
    if one.prompt is not None:
        what = f"{units.quote(one.prompt)}, {what}" if what else units.quote(one.prompt)
    names = ", ".join([*one.names, "pinned"] if one.pinned else one.names)
    age = units.format_age(now - units.parse_timestamp(row.time)) if row.time else "?"
    return (
        row.key[:12],
        row.stage,
        what,
        units.format_si(one.bytes, "B"),
        age,
        names,
        latest(one.videos),
    )


def latest(videos: Sequence[str]) -> str:
    """Name the latest of some videos, and tell if it is gone and how many others there are."""
    if not videos:
        return ""
    path = Path(videos[-1])
    more = f" and {len(videos) - 1} more" if len(videos) > 1 else ""
    return f"{printable(path.name)}{'' if path.exists() else ' (gone)'}{more}"


def usage_table(sizes: Mapping[str, Mapping[str, int]]) -> str:
    """Format disk usage in columns: size, number of entries, stage."""
    rows = [
        (units.format_si(size["bytes"], "B"), f"{size['entries']}", name)
        for name, size in sizes.items()
    ]
    return units.format_table(rows, frozenset({0, 1}))
