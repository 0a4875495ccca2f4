"""An entry being written: arrays, digests and statistics, until a seal makes it whole.

Refuses arrays that cannot be right. Knows nothing of where entries lie or how they become visible.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.errors import WanpipeError
from wanpipe.store.entry import ATTRIBUTE, seal_of
from wanpipe.store.keys import hash_file
from wanpipe.store.layout import GROUP, Form, encode, groups_above, write_document

if TYPE_CHECKING:
    import numpy as np


class Draft:
    """An entry being written, in a directory of its own, until `seal` makes it whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)
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
        form = Form(shape=tuple(shape), rows=rows, axes=tuple(axes), dtype=str(dtype))
        (self.path / name).mkdir(parents=True, exist_ok=True)
        for group in groups_above(name):
            write_document(self.path / group, GROUP)
        write_document(self.path / name, form.to_json())
        return Sink(self, name, form)

    def attach(self, name: str, digest: str | None = None) -> None:
        """Make a file that was written into the draft part of the entry, by its content hash."""
        self.files[name] = digest or hash_file(self.path / name)

    def seal(self, record: Mapping[str, Any]) -> None:
        """Write the record with digests and seal; the entry is complete after it."""
        made = {**record["made"], "statistics": self.statistics}
        whole = {**record, "digest": self.digest, "files": self.files, "made": made}
        group = {**GROUP, "attributes": {ATTRIBUTE: whole}}
        sealed = {**whole, "seal": seal_of(self.path, group)}
        write_document(self.path, {**GROUP, "attributes": {ATTRIBUTE: sealed}})


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

    def __init__(self, draft: Draft, name: str, form: Form) -> None:
        self.draft, self.name, self.form = draft, name, form
        self.chunks = iter(form.files)
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
        self.pending.append(np.ascontiguousarray(block, dtype=self.form.dtype))
        self.flush(self.form.rows)

    def flush(self, rows: int) -> None:
        """Write pending rows, `rows` at a time, as long as there are that many."""
        import numpy as np

        while sum(len(block) for block in self.pending) >= rows > 0:
            joined = np.concatenate(self.pending)
            chunk, rest = joined[:rows], joined[rows:]
            self.pending = [rest] if len(rest) else []
            file = self.draft.path / self.name / next(self.chunks)
            file.write_bytes(encode(chunk, self.form))
            self.state.update(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
            self.written += rows

    def close(self) -> None:
        """Write what is pending and note digest and statistics. Raises WanpipeError for a constant
        array.
        """
        self.flush(sum(len(block) for block in self.pending))
        size = math.prod(self.form.shape)
        assert self.written == self.form.shape[0], (self.name, self.written, self.form)
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
