"""What a tensor in a checkpoint file is and where it lies; how errors show its name.

Reads nothing.
"""

from collections.abc import Collection
from dataclasses import dataclass

LISTED = 6  # names that an error spells out
MAX_AXES = 8  # of a tensor; NumPy itself stops at 64


@dataclass(frozen=True)
class TensorInfo:
    """Shape, format (as safetensors names it: "F32", "BF16", ...) and size of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: index of the file, byte offset, strides in numbers if not contiguous."""

    file: int
    offset: int
    strides: tuple[int, ...] | None = None


def shown(name: str) -> str:
    """Make a name from a file fit for one line of an error."""
    return name if name.isprintable() and len(name) <= 100 else repr(name[:100])


def listed(names: Collection[str]) -> str:
    """Name the first few of `names`, in order, and count the rest."""
    first = ", ".join(shown(name) for name in list(names)[:LISTED])
    return first if len(names) <= LISTED else f"{first} and {len(names) - LISTED} more"
