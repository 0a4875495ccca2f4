"""Summaries of all entries, so that listing a large cache reads one file.

Folders decide which entries exist; an entry without a summary is read.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from wanpipe.errors import StoreError
from wanpipe.runtime.documents import DocumentError, decode
from wanpipe.store.entry import read_record
from wanpipe.store.index_file import ENTRIES, IndexFile
from wanpipe.store.keys import is_key
from wanpipe.store.materials import Step
from wanpipe.store.schema import STAGES, Record

MAX_STALE_ROWS = 1000  # summaries of removed entries that are kept before they are deleted
UNREADABLE = "cannot be read; see `wanpipe cache verify`"


class Legacy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings of a run, which wanpipe 0.1.0 stored in its entries."""

    settings: dict[str, Any] | None = None
    seed: int | None = None
    model: str | None = None
    lora_files: dict[str, str] = {}
    fps: float | None = None


class Summary(msgspec.Struct, frozen=True, array_like=True):
    """The summary of an entry: `bytes` on disk, `time` UTC as ISO text, `seconds` of computing,
    `step` 0-based.
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
    legacy: Legacy | None = None

    @property
    def id(self) -> str:
        """Its path below the root: stage/key."""
        return f"{self.stage}/{self.key}"

    @property
    def readable(self) -> bool:
        """Whether its record could be read."""
        return bool(self.time)


def summarize(path: Path, record: Record) -> Summary:
    """Summarize the entry at `path`. Raises OSError if its files cannot be listed."""
    made, step = record.made, record.step
    legacy: Legacy | None = None
    if made.settings is not None or made.fps is not None:
        legacy = Legacy(
            settings=made.settings,
            seed=made.seed,
            model=made.model,
            lora_files=made.lora_files or {},
            fps=made.fps,
        )
    material = record.material
    return Summary(
        stage=record.stage,
        key=record.key,
        bytes=disk_usage(path),
        time=made.time,
        seconds=made.seconds,
        step=step if isinstance(step, int) else None,
        parent=record.parent if isinstance(record.parent, str) else None,
        inputs=record.inputs,
        model=made.model or "",
        prompt=made.prompt,
        what=STAGES[record.stage].describe(record),
        loras=material.loras if isinstance(material, Step) else [],
        legacy=legacy,
    )


def disk_usage(path: Path) -> int:
    """Return the bytes of all files below a folder; files removed meanwhile do not count."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(path) as found:
        for item in found:
            with suppress(FileNotFoundError):
                is_folder = item.is_dir(follow_symlinks=False)
                total += disk_usage(Path(item.path)) if is_folder else item.stat().st_size
    return total


class Index:
    """The summaries of all entries under `root`."""

    def __init__(self, root: Path, index_file: IndexFile) -> None:
        self.root, self.index_file = root, index_file

    def read(self) -> dict[str, Summary]:
        """Return the summary of every entry by stage/key."""
        known = self.load()
        existing = set(self.list_ids())
        gone = known.keys() - existing
        found = {entry_id: row for entry_id, row in known.items() if entry_id in existing}
        summaries = (self.read_summary(entry_id) for entry_id in sorted(existing - known.keys()))
        news = [row for row in summaries if row is not None]
        self.remember(row for row in news if row.readable)
        if len(gone) > MAX_STALE_ROWS:
            self.index_file.drop(ENTRIES, gone)
        return found | {row.id: row for row in news}

    def list_ids(self) -> Iterator[str]:
        """Yield the stage/key of every entry folder."""
        for stage in STAGES:
            with suppress(FileNotFoundError, NotADirectoryError):
                # not iterdir: a path for each of 100,000 entries takes four times as long
                names = os.listdir(self.root / stage)  # noqa: PTH208
                yield from (f"{stage}/{name}" for name in names if is_key(name))

    def load(self) -> dict[str, Summary]:
        """Return the stored summaries; none if any does not fit."""
        rows = self.index_file.all(ENTRIES).values()
        try:
            summaries = decode(b"[" + b",".join(rows) + b"]", list[Summary])
        except DocumentError:  # of another version
            return {}
        return {summary.id: summary for summary in summaries}

    def read_summary(self, entry_id: str) -> Summary | None:
        """Summarize an entry from its record; None if it was removed meanwhile."""
        path = self.root / entry_id
        stage, key = entry_id.split("/")
        try:
            row = summarize(path, read_record(path))
            if row.id == entry_id:
                return row
        except (StoreError, OSError):
            if not path.is_dir():
                return None
        nothing: dict[str, Any] = dict.fromkeys(("step", "parent", "prompt"))
        head: dict[str, Any] = {"stage": stage, "key": key, "bytes": disk_usage(path)}
        return Summary(
            **head, **nothing, what=UNREADABLE, time="", seconds=0.0, inputs={}, model=""
        )

    def add(self, path: Path, record: Record) -> None:
        """Store the summary of a newly published entry."""
        self.remember([summarize(path, record)])

    def remember(self, summaries: Iterable[Summary]) -> None:
        """Store summaries; a read-only cache stores none."""
        self.index_file.put(ENTRIES, {row.id: msgspec.json.encode(row) for row in summaries})
