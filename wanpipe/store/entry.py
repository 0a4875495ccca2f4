"""One immutable result on disk: a Zarr v3 group whose attributes say what it is and how it was
made.

Reads the folder of one entry; `draft` writes it. Knows nothing of where entries lie, of models or
of stages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.errors import StoreError
from wanpipe.runtime import interrupt
from wanpipe.runtime.documents import DocumentError, convert, first_line
from wanpipe.store.arrays import (
    METADATA,
    DamageError,
    read_blocks,
    read_document,
    read_metadata,
    reading,
)
from wanpipe.store.keys import canonical, key_of
from wanpipe.store.schema import Made, Record, check_links

if TYPE_CHECKING:
    import numpy as np

ATTRIBUTE = "wanpipe"
UNPUBLISHED = "0" * 32  # the seal of an entry that is only planned

__all__ = ["ATTRIBUTE", "UNPUBLISHED", "DamageError", "Entry", "read_entry", "record_at", "seal_of"]


@dataclass(frozen=True)
class Entry:
    """A published entry: its folder and its record (`attrs["wanpipe"]`)."""

    path: Path
    record: Record

    @property
    def stage(self) -> str:
        """The command that made it."""
        return self.record.stage

    @property
    def key(self) -> str:
        """Its key, 32 hex digits."""
        return self.record.key

    @property
    def root(self) -> Path:
        """The cache that it lies in."""
        return self.path.parent.parent

    @property
    def material(self) -> Any:
        """What was hashed to the key, as its stage declares it."""
        return self.record.material

    @property
    def inputs(self) -> dict[str, str]:
        """Role to key of each entry it was made from."""
        return self.record.inputs

    @property
    def made(self) -> Made:
        """How it was made: notes for people, which decide nothing."""
        return self.record.made

    @property
    def files(self) -> dict[str, str]:
        """Plain files it holds beside arrays (a converted model's), with their content hashes."""
        return self.record.files

    @property
    def names(self) -> list[str]:
        """Names of its arrays, `solver/...` included."""
        return list(self.record.digest)

    @property
    def step(self) -> int:
        """Number of a denoising step, from 0."""
        assert isinstance(self.record.step, int), f"{self.stage} has no steps"
        return self.record.step

    @property
    def parent(self) -> str | None:
        """Key of the step before, None for the first."""
        parent = self.record.parent
        return parent if isinstance(parent, str) else None

    def event(self) -> dict[str, Any]:
        """The fields by which events name this entry, as those of its recipe."""
        step = self.step if self.stage == "denoise" else None
        return {"stage": self.stage, "key": self.key, "step": step}

    def published(self) -> "Entry":
        """Return the entry with its arrays, even if it was only planned. Raises DamageError."""
        return read_entry(self.path) if self.is_planned else self

    @property
    def is_planned(self) -> bool:
        """Whether the entry is only planned, so that it has no arrays yet."""
        return self.record.seal == UNPUBLISHED

    def read(self, name: str) -> "np.ndarray":
        """Read one array whole. Raises DamageError where its bytes are not the published ones."""
        import numpy as np

        blocks = list(self.blocks(name))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def blocks(self, name: str) -> Iterator["np.ndarray"]:
        """Read one array chunk by chunk along its first axis; damage is raised at the damaged block
        or at the end.
        """
        import numpy as np

        state = xxhash.xxh3_128()
        for block in read_blocks(self.path / name):
            state.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            yield block
        if state.hexdigest() != self.record.digest[name]:
            raise DamageError(f"{self.path}: {name} does not have the digest it was published with")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array. Raises DamageError where its metadata cannot be read."""
        return tuple(read_metadata(self.path / name).shape)

    def verify(self) -> None:
        """Read every array and check its digest in bounded memory. Raises DamageError."""
        for name in self.names:
            for _ in self.blocks(name):
                interrupt.check()


def seal_of(path: Path, group: dict[str, Any]) -> str:
    """Hash the metadata documents of an entry: the group's (without the seal itself) and its
    arrays'.
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
    """Read an entry's record, not its arrays. Raises DamageError where metadata are not the
    published ones, StoreError where the disk does not give them.

    The key must be that of the material, the seal that of the metadata documents.
    """
    with reading(path):
        group = read_document(path)
        raw = group["attributes"][ATTRIBUTE]
        sound = seal_of(path, group) == raw["seal"]
        sound = sound and raw["key"] == key_of(raw["material"]) == path.name
        record = convert(raw, Record) if sound else None
    if record is None:
        raise DamageError(f"{path}: metadata are not those it was published with")
    if wrong := check_links(record):
        raise DamageError(f"{path}: {wrong}")
    return Entry(path, record)


def record_at(path: Path) -> Record:
    """Read an entry's record unchecked: for looking, never for computing. Raises StoreError."""
    try:
        return convert(read_document(path)["attributes"][ATTRIBUTE], Record)
    except (OSError, DocumentError, LookupError, TypeError) as error:
        raise StoreError(
            f"{path} has no readable record ({first_line(error)}); run `wanpipe cache verify`"
        ) from error
