"""Drafts: entries that are being written, with digests and statistics, until they are sealed.

Refuses arrays that are not finite or constant, and notes what else looks wrong in them. Knows
nothing of how entries are published.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from wanpipe.errors import WanpipeError
from wanpipe.store.arrays import METADATA, create_array, create_group, read_document
from wanpipe.store.entry import ATTRIBUTE, seal_of
from wanpipe.store.keys import hash_file
from wanpipe.store.schema import ArraySpec, StageSpec, check_arrays

if TYPE_CHECKING:
    import numpy as np
    import zarr


NOISE = 2  # levels by which the frames of a still video may differ
FLAT_LATENT = (
    "{name} is nearly constant in every channel (standard deviation {spread:.1g}), so the video "
    "may be one color; check the weights, --dtype and --shift"
)
FLAT_FRAMES = (
    "every frame is nearly one color; unless the prompt asks for it, check the weights, the VAE, "
    "--dtype and --shift"
)
STILL_FRAMES = (
    "all frames show the same picture; unless the prompt asks for it, check --shift, --guide-scale "
    "and the weights"
)


class Draft:
    """An entry of `stage` that is being written in a folder of its own, until `seal` completes it.

    Arrays given to `write` stay in memory until then, so that another thread can write them.
    `dtype` is the one in which they were computed.
    """

    def __init__(self, path: Path, stage: StageSpec, dtype: str = "") -> None:
        self.path, self.stage = path, stage
        self.dtype = dtype  # of the computation
        path.mkdir(exist_ok=True)
        self.made: dict[str, Any] = {}  # notes for the record
        self.pending: dict[str, np.ndarray] = {}
        self.zarr_group: zarr.Group | None = None
        self.digest: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.statistics: dict[str, dict[str, float]] = {}
        self.concerns: list[str] = []

    def group(self) -> "zarr.Group":
        """Return the Zarr group, which is created on first use."""
        if self.zarr_group is None:
            # of a resumed draft: the document, and a part that zarr left when it was killed
            for left in (self.path / METADATA, *self.path.glob("zarr.*.partial")):
                left.unlink(missing_ok=True)
            self.zarr_group = create_group(self.path)
        return self.zarr_group

    def write(self, name: str, array: "np.ndarray") -> None:
        """Have `seal` write one array as one chunk. `seal` raises WanpipeError if it has NaN or
        infinity, or is constant.
        """
        self.pending[name] = array

    def stream(self, name: str, shape: tuple[int, ...]) -> "ArrayWriter":
        """Open an array that grows along its first axis, in chunks as its stage declares."""
        declared = self.stage.array(name)
        assert len(shape) == len(declared.axes), (name, shape, declared)
        array = create_array(self.group(), name, declared, shape)
        return ArrayWriter(self, name, array, declared)

    def attach(self, name: str, digest: str | None = None) -> None:
        """Add a file in the draft to the entry, with its content hash."""
        self.files[name] = digest or hash_file(self.path / name)

    def seal(self, record: Mapping[str, Any]) -> None:
        """Write the arrays, then the record with digests and seal, which completes the entry."""
        while self.pending:
            name = next(iter(self.pending))
            array = self.pending.pop(name)
            with self.stream(name, array.shape) as sink:
                sink.append(array)
        assert not check_arrays(self.stage, set(self.digest)), (self.stage.name, self.digest)
        made = {**record["made"], "statistics": self.statistics}
        if self.concerns:
            made["concerns"] = self.concerns
        whole = {**record, "digest": self.digest, "files": self.files, "made": made}
        self.group()  # creates its document
        group = {**read_document(self.path), "attributes": {ATTRIBUTE: whole}}
        sealed = {**whole, "seal": seal_of(self.path, group)}
        group["attributes"] = {ATTRIBUTE: sealed}
        # by hand: zarr would escape every character beyond ASCII, which people cannot read
        text = json.dumps(group, indent=2, ensure_ascii=False, allow_nan=False)
        (self.path / METADATA).write_text(text, encoding="utf-8")


class ArrayWriter:
    """Appends blocks to one array of a draft, and computes its digest and statistics."""

    def __init__(self, draft: Draft, name: str, array: "zarr.Array[Any]", spec: ArraySpec) -> None:
        self.draft, self.name, self.array = draft, name, array
        self.rows = spec.rows or array.shape[0]
        channel = spec.axes.find("C") if spec.varies else -1
        alone = array.size == array.shape[channel]  # one value in each channel
        self.channel = None if channel < 0 or alone else channel
        self.first: np.ndarray | None = None  # the first value of each channel
        self.state = xxhash.xxh3_128()
        self.pending: list[np.ndarray] = []
        self.written = 0
        self.minimum, self.maximum = float("inf"), float("-inf")
        self.sums: list[np.ndarray] = []  # of a row of each block, or of a channel where these are
        self.squares: list[np.ndarray] = []
        self.least = spec.least
        self.pictures = Pictures(spec.least) if spec.least and spec.axes[0] == "T" else None

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()

    def append(self, block: "np.ndarray") -> None:
        """Append rows; full chunks are written at once."""
        import numpy as np

        if not np.isfinite(block).all():
            remedy = "try a model converted with --dtype float32"
            if self.draft.dtype == "float32":
                remedy = "check guidance, LoRAs and weights"
            raise WanpipeError(
                f"{self.name} has NaN or infinite values, so it was not kept; {remedy}"
            )
        self.minimum = min(self.minimum, float(block.min()))
        self.maximum = max(self.maximum, float(block.max()))
        flat = block.reshape(len(block) if self.least and self.pictures is None else 1, -1)
        self.sums.append(flat.sum(axis=1, dtype=np.float64))
        # in small pieces, where np.square would make float64 of the whole block
        squares = np.einsum("ci,ci->c", flat, flat, dtype=np.float64, casting="safe")
        self.squares.append(squares)
        self.look_for_change(block)
        if self.pictures is not None:
            self.pictures.look(block)
        self.pending.append(np.ascontiguousarray(block, dtype=self.array.dtype))
        self.flush(self.rows)

    def look_for_change(self, block: "np.ndarray") -> None:
        """Compare with the first value of each channel, until something differs from it."""
        if self.channel is None:
            return
        if self.first is None or self.channel == 0:  # otherwise all blocks have the same channels
            start = tuple(slice(None if axis == self.channel else 1) for axis in range(block.ndim))
            self.first = block[start].copy()
        if (block != self.first).any():
            self.channel = None

    def flush(self, rows: int) -> None:
        """Write pending rows in chunks of `rows`; keep the rest pending."""
        import numpy as np

        while sum(len(block) for block in self.pending) >= rows > 0:
            joined = self.pending[0] if len(self.pending) == 1 else np.concatenate(self.pending)
            chunk, rest = joined[:rows], joined[rows:]
            self.pending = [rest] if len(rest) else []
            self.array[self.written : self.written + rows] = chunk
            self.state.update(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
            self.written += rows

    def close(self) -> None:
        """Write pending rows and record digest and statistics. Raises WanpipeError if the array is
        constant.
        """
        import numpy as np

        self.flush(sum(len(block) for block in self.pending))
        size = math.prod(self.array.shape)
        assert self.written == self.array.shape[0], (self.name, self.written, self.array.shape)
        if size > 1 and self.minimum == self.maximum:
            raise WanpipeError(
                f"{self.name} is {self.minimum:g} everywhere, so it was not kept; the model or its "
                "weights are broken"
            )
        if self.channel is not None:
            raise WanpipeError(
                f"array {self.name} is constant in every channel, so it was not kept; the model or "
                "its weights are broken"
            )
        sums, squares = np.concatenate(self.sums), np.concatenate(self.squares)
        mean = float(sums.sum()) / size
        variance = max(float(squares.sum()) / size - mean * mean, 0.0)
        self.draft.digest[self.name] = self.state.hexdigest()
        self.draft.statistics[self.name] = {
            "min": self.minimum,
            "max": self.maximum,
            "mean": mean,
            "std": variance**0.5,
        }
        if self.pictures is not None:
            self.draft.concerns += self.pictures.concerns()
        elif self.least is not None:
            count = size / len(sums)
            spread = float(np.sqrt((squares / count - (sums / count) ** 2).clip(0)).max())
            if count > 1 and spread < self.least:
                self.draft.concerns.append(FLAT_LATENT.format(name=self.name, spread=spread))


class Pictures:
    """Looks at frames until one of them has more than one color, and one differs from the first:
    in a sound video at two frames.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self.first: np.ndarray | None = None
        self.count = 0
        self.flat = self.still = True

    def look(self, frames: "np.ndarray") -> None:
        """Look at frames (T, Y, X, 3) uint8."""
        import numpy as np

        for frame in frames:
            self.count += 1
            if self.first is None:
                self.first = frame.astype(np.int16)
            elif self.still:
                self.still = bool(np.abs(frame - self.first).max() <= NOISE)
            if self.flat:
                channels = np.ascontiguousarray(np.moveaxis(frame, -1, 0), dtype=np.float32)
                self.flat = bool(channels.std(axis=(1, 2)).max() < self.least)
            if not (self.flat or self.still):
                return

    def concerns(self) -> list[str]:
        """Return what looks wrong in all frames."""
        if self.flat:
            return [FLAT_FRAMES]
        return [STILL_FRAMES] if self.still and self.count > 1 else []
