"""Writes safetensors files tensor by tensor, hashing on the way; equal input gives equal bytes.

Own code, because the safetensors library writes only what is all in memory at once. Knows nothing
of networks. A file appears under its name only when it is whole.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import xxhash

from wanpipe.checkpoints.dtypes import NUMPY_DTYPES, Array
from wanpipe.runtime.disk import atomic_replace


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a file to be written: name, format as safetensors names it, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor in the file."""
        return prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class WrittenFile:
    """What a finished file is: xxh3_128 of its bytes, and their number."""

    hash: str
    bytes: int


def sort_specs(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Order by width of the numbers, so that each tensor is aligned, then by name, 2 before 10."""
    return sorted(
        specs, key=lambda spec: (-NUMPY_DTYPES[spec.dtype].itemsize, natural_sort_key(spec.name))
    )


def natural_sort_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key of a name, in which runs of digits count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def encode_header(specs: Sequence[TensorSpec], metadata: dict[str, str]) -> bytes:
    """Encode the header of a file that holds `specs` in this order."""
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for spec in specs:
        end = offset + spec.nbytes
        table[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    path: Path,
    specs: Sequence[TensorSpec],
    blocks: Callable[[TensorSpec], Iterable[Array]],
    metadata: dict[str, str],
    advance: Callable[[int], None] = lambda _: None,
) -> WrittenFile:
    """Write `specs` in this order; `blocks` gives each one's numbers in turn, in C order.

    Calls `advance` with the bytes of each block. Leaves no file after an error.
    """
    state = xxhash.xxh3_128()
    # a name of its own: the part that a killed process left is written anew, not left behind
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # or, where it is a link, the file behind it would be written
    with atomic_replace(path, part) as draft, draft.open("xb") as file:
        start = encode_header(specs, metadata)
        state.update(start)
        file.write(start)
        size = len(start)
        for spec in specs:
            size += spec.nbytes
            for block in blocks(spec):
                view = block.reshape(-1).view(np.uint8).data
                state.update(view)
                file.write(view)
                advance(len(view))
            assert file.tell() == size, (spec, size)
    return WrittenFile(state.hexdigest(), size)
