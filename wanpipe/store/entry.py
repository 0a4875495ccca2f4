"""Entries: one immutable result on disk, a Zarr v3 group whose attributes are its record.

Reads the folder of one entry; `draft` writes it. Knows nothing of stages, models or other entries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from wanpipe.errors import StoreError
from wanpipe.runtime import interrupt
from wanpipe.runtime.documents import DocumentError, convert, first_line
from wanpipe.store.arrays import (
    METADATA,
    DamageError,
    damage_errors,
    read_blocks,
    read_document,
    read_metadata,
)
from wanpipe.store.keys import canonical, key_of
from wanpipe.store.schema import Made, Record, check_references

if TYPE_CHECKING:
    import numpy as np

ATTRIBUTE = "wanpipe"
UNPUBLISHED = "0" * 32  # the seal of a planned entry

__all__ = [
    "ATTRIBUTE",
    "UNPUBLISHED",
    "DamageError",
    "Entry",
    "read_entry",
    "read_record",
    "seal_of",
]


@dataclass(frozen=True)
class Entry:
    """A published entry: its folder and its record (`attrs["wanpipe"]`)."""

    path: Path
    record: Record

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return self.record.stage

    @property
    def key(self) -> str:
        """Its key, 32 hex digits."""
        return self.record.key

    @property
    def root(self) -> Path:
        """The cache that contains it."""
        return self.path.parent.parent

    @property
    def material(self) -> Any:
        """The material, whose hash is the key."""
        return self.record.material

    @property
    def inputs(self) -> dict[str, str]:
        """The key of each entry it was made from, by role."""
        return self.record.inputs

    @property
    def made(self) -> Made:
        """How it was made: notes for people, which decide nothing."""
        return self.record.made

    @property
    def files(self) -> dict[str, str]:
        """Its plain files (those of a converted model) with their content hashes."""
        return self.record.files

    @property
    def names(self) -> list[str]:
        """The names of its arrays, `solver/...` included."""
        return list(self.record.digest)

    @property
    def step(self) -> int:
        """Number of a denoising step, from 0."""
        assert isinstance(self.record.step, int), f"{self.stage} has no steps"
        return self.record.step

    @property
    def parent(self) -> str | None:
        """Key of the step before it, None for the first step."""
        parent = self.record.parent
        return parent if isinstance(parent, str) else None

    def event(self) -> dict[str, Any]:
        """Return the fields by which events name this entry."""
        step = self.step if self.stage == "denoise" else None
        return {"stage": self.stage, "key": self.key, "step": step}

    def published(self) -> "Entry":
        """Return the published entry if this one is planned. Raises DamageError."""
        return read_entry(self.path) if self.is_planned else self

    @property
    def is_planned(self) -> bool:
        """Whether the entry is only planned, without arrays."""
        return self.record.seal == UNPUBLISHED

    def read(self, name: str) -> "np.ndarray":
        """Read one array. Raises DamageError if its digest differs."""
        import numpy as np

        blocks = list(self.blocks(name))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def blocks(self, name: str) -> Iterator["np.ndarray"]:
        """Yield one array chunk by chunk along its first axis. Raises DamageError at a damaged
        chunk, or at the end if the digest differs.
        """
        import numpy as np

        state = xxhash.xxh3_128()
        for block in read_blocks(self.path / name):
            state.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            yield block
        if state.hexdigest() != self.record.digest[name]:
            raise DamageError(f"{self.path}: {name} does not have the digest it was published with")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one array. Raises DamageError if its metadata are invalid."""
        return tuple(read_metadata(self.path / name).shape)

    def verify(self) -> None:
        """Check the digest of every array, a chunk at a time. Raises DamageError."""
        for name in self.names:
            for _ in self.blocks(name):
                interrupt.check()


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes of an entry's group: its record."""

    wanpipe: dict[str, Any]


class GroupDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The `zarr.json` of an entry, as far as it must be known to check its seal."""

    attributes: Attributes


def read_group(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the document of an entry and its record as dicts. Raises OSError or DocumentError."""
    group = read_document(path)
    return group, convert(group, GroupDocument).attributes.wanpipe


def seal_of(path: Path, group: dict[str, Any]) -> str:
    """Hash the metadata documents of an entry: those of the group, without the seal, and of its
    arrays.
    """
    record = {
        name: value for name, value in group["attributes"][ATTRIBUTE].items() if name != "seal"
    }
    documents: dict[str, Any] = {".": {**group, "attributes": {ATTRIBUTE: record}}}
    for child in sorted(path.rglob(METADATA)):
        if child.parent != path:
            documents[child.parent.relative_to(path).as_posix()] = read_document(child.parent)
    return xxhash.xxh3_128_hexdigest(canonical(documents))


def read_entry(path: Path) -> Entry:
    """Read an entry's record, not its arrays. Raises DamageError if the key does not fit the
    material or the seal the metadata documents, StoreError if the disk cannot read them.
    """
    with damage_errors(path):
        group, raw = read_group(path)
        sound = seal_of(path, group) == raw["seal"]
        sound = sound and raw["key"] == key_of(raw["material"]) == path.name
        record = convert(raw, Record) if sound else None
    if record is None:
        raise DamageError(f"{path}: metadata are not those it was published with")
    if wrong := check_references(record):
        raise DamageError(f"{path}: {wrong}")
    return Entry(path, record)


def read_record(path: Path) -> Record:
    """Read an entry's record without checking its seal: for display only. Raises StoreError."""
    try:
        raw = read_group(path)[1]
        record = convert(raw, Record)
        if record.key != key_of(raw["material"]):  # otherwise a step could be its own parent
            raise DocumentError("its key is not that of its material")
        if wrong := check_references(record):
            raise DocumentError(wrong)
        return record
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{path} has no readable record ({first_line(error)}); run `wanpipe cache verify`"
        ) from error
