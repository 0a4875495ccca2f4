"""What a tensor in a checkpoint file is and where it lies; how errors show its name.

Reads nothing.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from wanpipe.errors import CheckpointError

MAX_LISTED = 6  # names that an error spells out
MAX_TENSORS = 1 << 16  # of a file; real ones have a few thousand
MAX_NAME = 500  # characters of a tensor's name
MAX_AXES = 8  # of a tensor; NumPy itself stops at 64
MAX_AXIS_LENGTH = 1 << 48  # numbers along an axis


@dataclass(frozen=True)
class TensorInfo:
    """Shape, format (as safetensors names it: "F32", "BF16", ...) and size of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Quantization:
    """A type of GGUF: `size` bytes hold `block` numbers that follow each other."""

    name: str
    block: int
    size: int


@dataclass(frozen=True)
class TensorLocation:
    """Where a tensor is: index of the file, byte offset, strides in numbers if not contiguous; and
    how its numbers are stored, if quantized.
    """

    file: int
    offset: int
    strides: tuple[int, ...] | None = None
    quantization: Quantization | None = None


def check_names(names: Collection[str], path: Path) -> None:
    """Raise CheckpointError for more names in a file, or longer ones, than any network has: every
    one costs time.
    """
    if len(names) > MAX_TENSORS:
        raise CheckpointError(
            f"{path} holds {len(names)} tensors, more than {MAX_TENSORS}; use the file of one "
            "network"
        )
    if names and len(longest := max(names, key=len)) > MAX_NAME:
        raise CheckpointError(
            f"{path} holds a tensor whose name has {len(longest)} characters, more than "
            f"{MAX_NAME}: {quote_name(longest)}; download it again"
        )


def quote_name(name: str) -> str:
    """Quote a name from a file for one line of an error."""
    return name if name.isprintable() and len(name) <= 100 else repr(name[:100])


def list_names(names: Collection[str]) -> str:
    """Name the first few of `names`, in order, and count the rest."""
    first = ", ".join(quote_name(name) for name in list(names)[:MAX_LISTED])
    return first if len(names) <= MAX_LISTED else f"{first} and {len(names) - MAX_LISTED} more"
