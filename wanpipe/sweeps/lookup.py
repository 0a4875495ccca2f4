"""What planning a sweep reads: the cache without its arrays, and the videos that are there."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wanpipe.errors import UsageError, WanpipeError
from wanpipe.runtime.report import Report
from wanpipe.store import Entry, Store
from wanpipe.store.entry import read_entry

READERS = 8  # videos that are read at once


class Lookup(Store):
    """A cache to plan with: nothing is written, and no array is read. Whoever computes with an
    entry checks its digests.
    """

    def __init__(self, root: Path, report: Report) -> None:
        super().__init__(root, Once(report), read_only=True)

    def open_checked(self, path: Path) -> Entry:
        """Read the record of an entry. Raises DamageError."""
        return read_entry(path)


class Once(Report):
    """Passes on what a user should know once, although it is true of many videos."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.told: set[str] = set()

    def event(self, kind: str, **fields: Any) -> None:
        if kind in ("memory", "damaged") and self.is_new(json.dumps([kind, fields])):
            self.report.event(kind, **fields)

    def remark(self, text: str) -> None:
        if self.is_new(text):
            self.report.remark(text)

    def is_new(self, text: str) -> bool:
        """Return whether a text was not told yet."""
        before = len(self.told)
        self.told.add(text)
        return len(self.told) > before


def are_current(videos: Sequence[tuple[Path, str, float]]) -> list[bool]:
    """Return for each video, given by its path, the key of its frames and frames per second,
    whether the file has just these, by the lineage in it.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda one: is_current(*one), videos))


def is_current(path: Path, frames: str, fps: float) -> bool:
    """Return whether a file is the video of these frames."""
    from wanpipe.media.video import read_metadata

    if not path.exists():
        return False
    try:
        lineage = json.loads(read_metadata(path).get("comment", ""))["wanpipe"]
        return bool(lineage["decode"] == frames and lineage["fps"] == fps)
    except (WanpipeError, UsageError, ValueError, LookupError, TypeError, RecursionError):
        return False  # no video of wanpipe: it is replaced by one
