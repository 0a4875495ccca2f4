"""One immutable result on disk: a Zarr v3 group whose attributes say what it is and how it was
made.

Reads the directory of one entry; `draft` writes it. Knows nothing of where entries lie, of models
or of stages.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.errors import StoreError
from wanpipe.store.keys import canonical, key_of
from wanpipe.store.layout import METADATA, Form, decode, read_document

if TYPE_CHECKING:
    import numpy as np

ATTRIBUTE = "wanpipe"


# what reading a document that is none may raise
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class DamageError(StoreError):
    """Raise for an entry whose bytes are not those that were published."""


@dataclass(frozen=True)
class Entry:
    """A published entry: its directory and its record (`attrs["wanpipe"]`)."""

    path: Path
    record: dict[str, Any]

    @property
    def stage(self) -> str:
        """The command that made it."""
        return str(self.record["stage"])

    @property
    def key(self) -> str:
        """Its key, 32 hex digits."""
        return str(self.record["key"])

    @property
    def material(self) -> dict[str, Any]:
        """What was hashed to the key."""
        return dict(self.record["material"])

    @property
    def inputs(self) -> dict[str, str]:
        """Role to key of each entry it was made from."""
        return dict(self.record["inputs"])

    @property
    def made(self) -> dict[str, Any]:
        """How it was made: versions, device, times, statistics, settings; never part of the key."""
        return dict(self.record["made"])

    @property
    def files(self) -> dict[str, str]:
        """Plain files it holds beside arrays (a converted model's), with their content hashes."""
        return dict(self.record["files"])

    @property
    def names(self) -> list[str]:
        """Names of its arrays, `solver/...` included."""
        return list(self.record["digest"])

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
        try:
            form = self.form(name)
            left = form.shape[0]
            for file in form.files:
                block = decode((self.path / name / file).read_bytes(), form)[:left]
                left -= len(block)
                state.update(block.reshape(-1).view(np.uint8).data)
                yield block
        except (OSError, ValueError, RuntimeError) as error:  # what files and zstd raise
            raise DamageError(
                f"{self.path}: {name} cannot be read ({first_line(error)})"
            ) from error
        if state.hexdigest() != self.record["digest"][name]:
            raise DamageError(f"{self.path}: {name} does not have the digest it was published with")

    def form(self, name: str) -> Form:
        """Shape, chunks and type of one array, from its metadata. Raises LayoutError."""
        return Form.from_json(read_document(self.path / name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array. Raises DamageError where its metadata cannot be read."""
        try:
            return self.form(name).shape
        except (OSError, ValueError) as error:
            raise DamageError(
                f"{self.path}: {name} cannot be read ({first_line(error)})"
            ) from error

    def verify(self) -> None:
        """Read every array and check its digest in bounded memory. Raises DamageError."""
        for name in self.names:
            for _ in self.blocks(name):
                pass


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


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
    published ones.

    The key must be that of the material, the seal that of the metadata documents.
    """
    try:
        group = read_document(path)
        record = group["attributes"][ATTRIBUTE]
        seal = seal_of(path, group)
        sound = seal == record["seal"] and record["key"] == key_of(record["material"]) == path.name
    except (OSError, *MALFORMED) as error:
        raise DamageError(f"{path}: metadata cannot be read ({first_line(error)})") from error
    if not sound:
        raise DamageError(f"{path}: metadata are not those it was published with")
    return Entry(path, record)
