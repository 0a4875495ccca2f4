"""A summary of every entry in one file, so that looking at a large cache reads one file.

A shortcut only: folders decide what is there, an entry that is not in the file is read, a line
whose checksum is wrong is as if it were not there, and losing the file costs one reading of all.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from wanpipe.errors import StoreError
from wanpipe.store.entry import ATTRIBUTE
from wanpipe.store.keys import is_key
from wanpipe.store.layout import read_document

STAGES = ("convert", "encode-text", "encode-image", "denoise", "decode")
FILE = ".index"
SLACK = 1000  # lines of entries that are gone before the file is written anew
SUM = 16  # hex digits of a line's checksum


class Summary(NamedTuple):
    """What there is to know of an entry at a glance; `bytes` on disk, `time` UTC as ISO text,
    `seconds` of computing, `step` 0-based of `steps`.
    """

    stage: str
    key: str
    bytes: int
    time: str
    seconds: float
    step: int | None
    steps: int | None
    parent: str | None
    inputs: dict[str, str]
    seed: int | None
    model: str
    prompt: str | None
    what: str

    @property
    def place(self) -> str:
        """Its folder below the root: stage/key."""
        return f"{self.stage}/{self.key}"

    @property
    def readable(self) -> bool:
        """Whether its record could be read."""
        return bool(self.time)

    @property
    def finished(self) -> bool:
        """Whether it is the last step of its run."""
        return self.step is not None and self.step + 1 == self.steps


def summarise(path: Path, record: dict[str, Any]) -> Summary:
    """Sum up the entry at `path`. Raises KeyError and the like for a record that is none."""
    made = record["made"]
    settings = made.get("settings") or {}
    prompt = made.get("prompt")
    return Summary(
        stage=str(record["stage"]),
        key=str(record["key"]),
        bytes=size_of(path),
        time=str(made["time"]),
        seconds=float(made.get("seconds", 0.0)),
        step=record.get("step"),
        steps=settings.get("steps"),
        parent=record.get("parent"),
        inputs=dict(record["inputs"]),
        seed=made.get("seed"),
        model=str(made.get("model", "")),
        prompt=None if prompt is None else str(prompt),
        what=what(record),
    )


def what(record: dict[str, Any]) -> str:
    """Tell in words what an entry holds, beside prompt, seed and step."""
    material, made = record["material"], record["made"]
    settings = made.get("settings") or made.get("lineage") or {}
    if record["stage"] == "convert":
        return f"{material.get('variant')}, {material.get('dtype')}"
    if record["stage"] == "encode-image":
        return f"{made.get('image')}, {material.get('width')}x{material.get('height')}"
    if "width" not in settings:
        return ""
    size = "{width}x{height}, {num_frames} frames".format_map(settings)
    if record["stage"] == "decode":
        return size
    parts = [size, f"guidance {material.get('guide_scale')}"]
    parts += [f"{one.get('name')} {one.get('strength')}" for one in settings.get("loras") or ()]
    return ", ".join(parts)


def size_of(path: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    with os.scandir(path) as found:
        for item in found:
            is_folder = item.is_dir(follow_symlinks=False)
            total += size_of(Path(item.path)) if is_folder else item.stat().st_size
    return total


def record_at(path: Path) -> dict[str, Any]:
    """Read an entry's record unchecked: for looking, never for computing. Raises StoreError."""
    try:
        return dict(read_document(path)["attributes"][ATTRIBUTE])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} has no readable record; run `wanpipe cache verify`") from error


class Index:
    """Summaries of all entries under `root`."""

    def __init__(self, root: Path, writes: bool = True) -> None:
        self.root, self.writes = root, writes
        self.file = root / FILE

    def read(self) -> dict[str, Summary]:
        """Return the summary of every entry that is there, by stage/key."""
        found, lines = self.load()
        there = set(self.listing())
        for place in found.keys() - there:
            del found[place]
        looked = (self.look(place) for place in there - found.keys())
        news = [row for row in looked if row is not None]
        found |= {row.place: row for row in news}
        if self.writes and lines > 2 * len(found) + SLACK:
            self.rewrite([row for row in found.values() if row.readable])
        else:
            self.append(row for row in news if row.readable)
        return found

    def listing(self) -> Iterator[str]:
        """Every stage/key for which there is a folder."""
        for stage in STAGES:
            with suppress(FileNotFoundError):
                # not iterdir: a path for each of 100,000 entries takes four times as long
                names = os.listdir(self.root / stage)  # noqa: PTH208
                yield from (f"{stage}/{name}" for name in names if is_key(name))

    def load(self) -> tuple[dict[str, Summary], int]:
        """Return the summaries in the file and its number of lines; later lines win."""
        try:
            lines = self.file.read_bytes().splitlines()
        except OSError:
            return {}, 0
        sound = [
            line[SUM + 1 :]
            for line in lines
            if line[:SUM] == xxhash.xxh3_64_hexdigest(line[SUM + 1 :]).encode()
        ]
        rows = json.loads(b"[" + b",".join(sound) + b"]")
        width = len(Summary._fields)  # a file of an older wanpipe may have other columns
        summaries = (Summary._make(row) for row in rows if len(row) == width)
        return {summary.place: summary for summary in summaries}, len(lines)

    def look(self, place: str) -> Summary | None:
        """Sum up an entry from its own record; None for one that was removed meanwhile."""
        path = self.root / place
        try:
            row = summarise(path, record_at(path))
            if row.place != place:
                raise KeyError(place)  # another entry's record
            return row
        except (StoreError, OSError, KeyError, ValueError, TypeError, AttributeError):
            if not path.is_dir():
                return None
            stage, key = place.split("/")
            size = size_of(path)
            words = "cannot be read; see `wanpipe cache verify`"
            nothing: dict[str, Any] = dict.fromkeys(("step", "steps", "parent", "seed", "prompt"))
            head: dict[str, Any] = {"stage": stage, "key": key, "bytes": size, "what": words}
            return Summary(**head, **nothing, time="", seconds=0.0, inputs={}, model="")

    def add(self, path: Path, record: dict[str, Any]) -> None:
        """Note an entry that was just published."""
        self.append([summarise(path, record)])

    def append(self, summaries: "Iterator[Summary] | list[Summary]") -> None:
        """Add lines in one write; where the cache cannot be written they are not remembered."""
        data = b"".join(map(line_of, summaries)) if self.writes else b""
        if not data:
            return
        try:
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError:
            return
        try:
            os.write(descriptor, data)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def rewrite(self, summaries: list[Summary]) -> None:
        """Write the file anew, without lines of entries that are gone."""
        draft = self.file.with_name(f"{FILE}.{os.getpid()}")
        try:
            draft.write_bytes(b"".join(map(line_of, summaries)))
            draft.replace(self.file)
        except OSError:
            draft.unlink(missing_ok=True)


def line_of(summary: Summary) -> bytes:
    """A summary as a line of the file: checksum, blank, JSON."""
    text = json.dumps(summary, ensure_ascii=False, separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"
