"""An entry being written: arrays, digests and statistics, until a seal makes it whole.

Refuses arrays that cannot be right. Knows nothing of where entries lie or how they become visible.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.errors import WanpipeError
from wanpipe.store.entry import ATTRIBUTE, METADATA, seal_of
from wanpipe.store.keys import hash_file

if TYPE_CHECKING:
    import numpy as np
    import zarr

ZSTD_LEVEL = 1  # latents shrink by 8 % at any level


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
            # "c.0.0" rather than c/0/0: a third of the files and folders to sync, list and remove
            chunk_key_encoding={"name": "default", "separator": "."},
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


class LateDraft(Draft):
    """A draft that keeps its arrays in memory until it is sealed, maybe by another thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.waiting: list[tuple[str, np.ndarray, Sequence[str]]] = []

    def write(self, name: str, array: "np.ndarray", axes: Sequence[str]) -> None:
        """Keep one array for `seal`, which raises what `Draft.write` would."""
        self.waiting.append((name, array, axes))

    def seal(self, record: Mapping[str, Any]) -> None:
        """Write the arrays, then the record with digests and seal."""
        for name, array, axes in self.waiting:
            super().write(name, array, axes)
        self.waiting.clear()
        super().seal(record)


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
