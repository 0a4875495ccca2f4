"""One immutable result on disk: a Zarr v3 group whose attributes say what it is and how it was
made.

Reads and writes the directory of one entry. Knows nothing of where entries lie, of models or of
stages.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.errors import StoreError, WanpipeError
from wanpipe.store.keys import canonical, hash_file, key_of

if TYPE_CHECKING:
    import numpy as np
    import zarr

ATTRIBUTE = "wanpipe"
METADATA = "zarr.json"
ZSTD_LEVEL = 1  # latents shrink by 8 % at any level


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

        return np.concatenate(list(self.blocks(name)))

    def blocks(self, name: str) -> Iterator["np.ndarray"]:
        """Read one array chunk by chunk along its first axis; damage is raised at the damaged block
        or at the end.
        """
        import numpy as np

        state = xxhash.xxh3_128()
        try:
            array = open_array(self.path, name)
            rows = array.chunks[0]
            for start in range(0, array.shape[0], rows):
                block = np.ascontiguousarray(array[start : start + rows])
                state.update(block.reshape(-1).view(np.uint8).data)
                yield block
        except (OSError, ValueError, RuntimeError) as error:  # what Zarr's store and codecs raise
            raise DamageError(
                f"{self.path}: {name} cannot be read ({first_line(error)})"
            ) from error
        if state.hexdigest() != self.record["digest"][name]:
            raise DamageError(f"{self.path}: {name} does not have the digest it was published with")

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array, from its metadata."""
        document = json.loads((self.path / name / METADATA).read_text(encoding="utf-8"))
        return tuple(document["shape"])

    def verify(self) -> None:
        """Read every array and check its digest in bounded memory. Raises DamageError."""
        for name in self.names:
            for _ in self.blocks(name):
                pass


def open_array(path: Path, name: str) -> "zarr.Array[Any]":
    """Open one array of the group at `path`."""
    import zarr

    node = zarr.open_group(str(path), mode="r", zarr_format=3)[name]
    assert isinstance(node, zarr.Array)
    return node


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
            document = json.loads(child.read_text(encoding="utf-8"))
            documents[child.parent.relative_to(path).as_posix()] = document
    return xxhash.xxh3_128_hexdigest(canonical(documents))


def read_entry(path: Path) -> Entry:
    """Read an entry's record, not its arrays. Raises DamageError where metadata are not the
    published ones.

    The key must be that of the material, the seal that of the metadata documents.
    """
    try:
        group = json.loads((path / METADATA).read_text(encoding="utf-8"))
        record = group["attributes"][ATTRIBUTE]
        seal = seal_of(path, group)
        sound = seal == record["seal"] and record["key"] == key_of(record["material"]) == path.name
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path}: metadata cannot be read ({first_line(error)})") from error
    if not sound:
        raise DamageError(f"{path}: metadata are not those it was published with")
    return Entry(path, record)


class Draft:
    """An entry being written, in a directory of its own, until `seal` makes it whole."""

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        self.group = zarr.open_group(str(path), mode="a", zarr_format=3)
        self.digest: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.statistics: dict[str, dict[str, float]] = {}

    def write(self, name: str, array: "np.ndarray", axes: Sequence[str]) -> None:
        """Write one array as one chunk; `axes` names its dimensions. Raises WanpipeError for NaN,
        infinity or a constant.
        """
        with self.stream(name, array.shape, array.dtype, axes, rows=array.shape[0]) as sink:
            sink.append(array)

    def stream(
        self, name: str, shape: tuple[int, ...], dtype: Any, axes: Sequence[str], rows: int
    ) -> "Sink":
        """Open an array that grows along its first axis, in chunks of `rows`."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        array = self.group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(rows, *shape[1:]),
            compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
            dimension_names=list(axes),
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        return Sink(self, name, array)

    def attach(self, name: str, digest: str | None = None) -> None:
        """Make a file that was written into the draft part of the entry, by its content hash."""
        self.files[name] = digest or hash_file(self.path / name)

    def seal(self, record: Mapping[str, Any]) -> None:
        """Write the record with digests and seal; the entry is complete after it."""
        made = {**record["made"], "statistics": self.statistics}
        whole = {**record, "digest": self.digest, "files": self.files, "made": made}
        self.group.attrs[ATTRIBUTE] = whole
        group = json.loads((self.path / METADATA).read_text(encoding="utf-8"))
        self.group.attrs[ATTRIBUTE] = {**whole, "seal": seal_of(self.path, group)}


class Sink:
    """Appends blocks to one array of a draft; keeps digest and statistics as they pass."""

    def __init__(self, draft: Draft, name: str, array: "zarr.Array[Any]") -> None:
        self.draft, self.name, self.array = draft, name, array
        self.state = xxhash.xxh3_128()
        self.pending: list[np.ndarray] = []
        self.written = 0
        self.minimum, self.maximum, self.total, self.squares = float("inf"), float("-inf"), 0.0, 0.0

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()

    def append(self, block: "np.ndarray") -> None:
        """Take the next rows; whole chunks go to disk at once."""
        import numpy as np

        if not np.isfinite(block).all():
            raise WanpipeError(
                f"{self.name} has NaN or infinite values, so it was not kept; try a model "
                "converted with --dtype float32"
            )
        self.minimum = min(self.minimum, float(block.min()))
        self.maximum = max(self.maximum, float(block.max()))
        self.total += float(block.sum(dtype=np.float64))
        self.squares += float(np.square(block, dtype=np.float64).sum())
        self.pending.append(np.ascontiguousarray(block, dtype=self.array.dtype))
        self.flush(self.array.chunks[0])

    def flush(self, rows: int) -> None:
        """Write pending rows, `rows` at a time, as long as there are that many."""
        import numpy as np

        while sum(len(block) for block in self.pending) >= rows > 0:
            joined = np.concatenate(self.pending)
            chunk, rest = joined[:rows], joined[rows:]
            self.pending = [rest] if len(rest) else []
            self.array[self.written : self.written + rows] = chunk
            self.state.update(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
            self.written += rows

    def close(self) -> None:
        """Write what is pending and note digest and statistics. Raises WanpipeError for a constant
        array.
        """
        self.flush(sum(len(block) for block in self.pending))
        size = self.array.size
        assert self.written == self.array.shape[0], (self.name, self.written, self.array.shape)
        if size > 1 and self.minimum == self.maximum:
            raise WanpipeError(
                f"{self.name} is {self.minimum:g} everywhere, so it was not kept; the model or its "
                "weights are broken"
            )
        mean = self.total / size
        variance = max(self.squares / size - mean * mean, 0.0)
        self.draft.digest[self.name] = self.state.hexdigest()
        self.draft.statistics[self.name] = {
            "min": self.minimum,
            "max": self.maximum,
            "mean": mean,
            "std": variance**0.5,
        }
