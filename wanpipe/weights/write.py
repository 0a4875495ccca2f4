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

from wanpipe.checkpoints.dtypes import STORED, Array
from wanpipe.runtime.disk import atomic_replace


@dataclass(frozen=True)
class Slot:
    """One tensor of a file to be written: name, format as safetensors names it, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor in the file."""
        return prod(self.shape) * STORED[self.dtype].itemsize


@dataclass(frozen=True)
class Written:
    """What a finished file is: xxh3_128 of its bytes, and their number."""

    hash: str
    bytes: int


def arranged(slots: Iterable[Slot]) -> list[Slot]:
    """Order by width of the numbers, so that each tensor is aligned, then by name, 2 before 10."""
    return sorted(slots, key=lambda slot: (-STORED[slot.dtype].itemsize, natural(slot.name)))


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key of a name, in which runs of digits count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def header(slots: Sequence[Slot], metadata: dict[str, str]) -> bytes:
    """Encode the header of a file that holds `slots` in this order."""
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for slot in slots:
        end = offset + slot.nbytes
        table[slot.name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    path: Path,
    slots: Sequence[Slot],
    blocks: Callable[[Slot], Iterable[Array]],
    metadata: dict[str, str],
    advance: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write `slots` in this order; `blocks` gives each one's numbers in turn, in C order.

    `advance` is told the bytes of each block. After an error there is no file.
    """
    state = xxhash.xxh3_128()
    # a name of its own: the part that a killed process left is written anew, not left behind
    part = path.with_name(f"{path.name}.part")
    with atomic_replace(path, part) as draft, draft.open("wb") as file:
        start = header(slots, metadata)
        state.update(start)
        file.write(start)
        size = len(start)
        for slot in slots:
            size += slot.nbytes
            for block in blocks(slot):
                view = block.reshape(-1).view(np.uint8).data
                state.update(view)
                file.write(view)
                advance(len(view))
            assert file.tell() == size, (slot, size)
    return Written(state.hexdigest(), size)
