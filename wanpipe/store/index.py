"""A summary of every entry, so that looking at a large cache reads one file.

A shortcut only: folders decide what is there, and an entry without a summary is read.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from wanpipe.errors import StoreError
from wanpipe.store.entry import record_at
from wanpipe.store.keys import is_key
from wanpipe.store.schema import STAGES, Record, Step
from wanpipe.store.shortcuts import ENTRIES, Shortcuts

SLACK = 1000  # summaries of entries that are gone before they are dropped
UNREADABLE = "cannot be read; see `wanpipe cache verify`"


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """What there is to know of an entry at a glance; `bytes` on disk, `time` UTC as ISO text,
    `seconds` of computing, `step` 0-based, `noted` what entries noted of their run before runs had
    records of their own.
    """

    stage: str
    key: str
    bytes: int
    time: str
    seconds: float
    step: int | None
    parent: str | None
    inputs: dict[str, str]
    model: str
    prompt: str | None
    what: str
    loras: list[tuple[str, float]] = []
    noted: dict[str, Any] | None = None

    @property
    def place(self) -> str:
        """Its folder below the root: stage/key."""
        return f"{self.stage}/{self.key}"

    @property
    def readable(self) -> bool:
        """Whether its record could be read."""
        return bool(self.time)


def summarize(path: Path, record: Record) -> Summary:
    """Sum up the entry at `path`. Raises OSError where its files cannot be listed."""
    made, step = record.made, record.step
    noted: dict[str, Any] | None = None
    if made.settings is not None:
        noted = {
            "settings": made.settings,
            "seed": made.seed,
            "model": made.model,
            "lora_files": made.lora_files or {},
        }
    elif made.fps is not None:
        noted = {"fps": made.fps}
    material = record.material
    return Summary(
        stage=record.stage,
        key=record.key,
        bytes=size_of(path),
        time=made.time,
        seconds=made.seconds,
        step=step if isinstance(step, int) else None,
        parent=record.parent if isinstance(record.parent, str) else None,
        inputs=record.inputs,
        model=made.model or "",
        prompt=made.prompt,
        what=STAGES[record.stage].what(record),
        loras=material.loras if isinstance(material, Step) else [],
        noted=noted,
    )


def size_of(path: Path) -> int:
    """Bytes of all files below a folder; what is removed meanwhile does not count."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(path) as found:
        for item in found:
            with suppress(FileNotFoundError):
                is_folder = item.is_dir(follow_symlinks=False)
                total += size_of(Path(item.path)) if is_folder else item.stat().st_size
    return total


class Index:
    """Summaries of all entries under `root`."""

    def __init__(self, root: Path, shortcuts: Shortcuts) -> None:
        self.root, self.shortcuts = root, shortcuts

    def read(self) -> dict[str, Summary]:
        """Return the summary of every entry that is there, by stage/key."""
        known = self.load()
        there = set(self.listing())
        gone = known.keys() - there
        found = {place: row for place, row in known.items() if place in there}
        looked = (self.look(place) for place in sorted(there - known.keys()))
        news = [row for row in looked if row is not None]
        self.note(row for row in news if row.readable)
        if len(gone) > SLACK:
            self.shortcuts.drop(ENTRIES, gone)
        return found | {row.place: row for row in news}

    def listing(self) -> Iterator[str]:
        """Every stage/key for which there is a folder."""
        for stage in STAGES:
            with suppress(FileNotFoundError, NotADirectoryError):
                # not iterdir: a path for each of 100,000 entries takes four times as long
                names = os.listdir(self.root / stage)  # noqa: PTH208
                yield from (f"{stage}/{name}" for name in names if is_key(name))

    def load(self) -> dict[str, Summary]:
        """Return the summaries that are remembered; one that does not fit is not there."""
        rows = self.shortcuts.all(ENTRIES).values()
        try:
            summaries = msgspec.json.decode(b"[" + b",".join(rows) + b"]", type=list[Summary])
        except msgspec.MsgspecError:  # of another wanpipe
            return {}
        return {summary.place: summary for summary in summaries}

    def look(self, place: str) -> Summary | None:
        """Sum up an entry from its own record; None for one that was removed meanwhile."""
        path = self.root / place
        stage, key = place.split("/")
        try:
            row = summarize(path, record_at(path))
            if row.place == place:
                return row
        except (StoreError, OSError):
            if not path.is_dir():
                return None
        nothing: dict[str, Any] = dict.fromkeys(("step", "parent", "prompt"))
        head: dict[str, Any] = {"stage": stage, "key": key, "bytes": size_of(path)}
        return Summary(
            **head, **nothing, what=UNREADABLE, time="", seconds=0.0, inputs={}, model=""
        )

    def add(self, path: Path, record: Record) -> None:
        """Note an entry that was just published."""
        self.note([summarize(path, record)])

    def note(self, summaries: Iterable[Summary]) -> None:
        """Remember summaries; where the cache cannot be written they are not remembered."""
        self.shortcuts.put(ENTRIES, {row.place: msgspec.json.encode(row) for row in summaries})
