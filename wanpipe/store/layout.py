"""How arrays lie on disk: of Zarr v3 the part that wanpipe writes, and no more.

Written out here so that an entry's bytes depend on no library's version; any Zarr library reads
them. A chunk is zstd, then crc32c; one that would unfold to another size is refused unread.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanpipe.store.keys import canonical

if TYPE_CHECKING:
    import numpy as np

METADATA = "zarr.json"
ZSTD_LEVEL = 1  # latents shrink by 8 % at any level
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
CHECKSUM = 4  # bytes of crc32c after a chunk
LARGEST = 1 << 31  # bytes of a chunk, decoded
LARGEST_RATIO = 256  # of decoded to stored bytes of a large chunk; latents have 1.1, frames 50
DTYPES = {"float32": 4, "uint8": 1}  # bytes of a number
GROUP: dict[str, Any] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


class LayoutError(ValueError):
    """Raise for documents and chunks that are not as this module writes them."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """An array in chunks of `rows` along its first axis; `axes` names its dimensions."""

    shape: tuple[int, ...]
    rows: int
    axes: tuple[str, ...]
    dtype: str

    @property
    def chunk(self) -> tuple[int, ...]:
        """Shape of a chunk; the last one is filled up with zeros."""
        return (self.rows, *self.shape[1:])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, decoded."""
        return math.prod(self.chunk) * DTYPES[self.dtype]

    @property
    def files(self) -> list[str]:
        """Names of the chunk files, in order."""
        # "c.0.0" rather than c/0/0: a third of the files and folders to sync, list and remove
        tail = ".0" * (len(self.shape) - 1)
        return [f"c.{index}{tail}" for index in range(math.ceil(self.shape[0] / self.rows))]

    def to_json(self) -> dict[str, Any]:
        """The metadata document."""
        endian = {"configuration": {"endian": "little"}} if self.dtype == "float32" else {}
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.chunk)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0.0 if self.dtype == "float32" else 0,
            "codecs": [
                {"name": "bytes", **endian},
                {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
                {"name": "crc32c"},
            ],
            "attributes": {},
            "dimension_names": list(self.axes),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }

    @staticmethod
    def from_json(document: Any) -> "Form":
        """Read a metadata document. Raises LayoutError unless it is one of ours to the letter."""
        try:
            form = Form(
                shape=tuple(document["shape"]),
                rows=document["chunk_grid"]["configuration"]["chunk_shape"][0],
                axes=tuple(document["dimension_names"]),
                dtype=document["data_type"],
            )
            lengths = [*form.shape, form.rows]
            fine = form.dtype in DTYPES and all(
                type(length) is int and 0 < length <= LARGEST for length in lengths
            )
            fine = fine and canonical(form.to_json()) == canonical(document)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise LayoutError("metadata are not an array's") from error
        if not fine:
            raise LayoutError("metadata are not those that wanpipe writes")
        return form


def encode(block: "np.ndarray", form: Form) -> bytes:
    """Encode rows as a chunk, filled up with zeros where they are fewer."""
    import google_crc32c
    import numpy as np
    from numcodecs.zstd import compress  # type: ignore[import-untyped]

    if len(block) < form.rows:
        blank = np.zeros((form.rows - len(block), *form.shape[1:]), block.dtype)
        block = np.concatenate([block, blank])
    little = np.ascontiguousarray(block, dtype=np.dtype(form.dtype).newbyteorder("<"))
    packed = bytes(compress(little.reshape(-1).view(np.uint8), ZSTD_LEVEL))
    return packed + int(google_crc32c.value(packed)).to_bytes(CHECKSUM, "little")


def decode(data: bytes, form: Form) -> "np.ndarray":
    """Decode a chunk to its rows, filled-up ones included. Raises LayoutError."""
    import google_crc32c
    import numpy as np
    from numcodecs.zstd import decompress

    packed, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
    size = form.chunk_bytes
    if google_crc32c.value(packed) != int.from_bytes(checksum, "little"):
        raise LayoutError("the checksum of a chunk does not fit")
    large = size > LARGEST or (size > 1 << 24 and size > LARGEST_RATIO * len(data))
    if large or content_size(packed) != size:
        raise LayoutError("a chunk does not have the size of its array")
    raw = np.empty(size, np.uint8)
    decompress(packed, raw)
    return raw.view(np.dtype(form.dtype).newbyteorder("<")).reshape(form.chunk)


def content_size(packed: bytes) -> int | None:
    """The decoded size in the header of a zstd frame (RFC 8878, 3.1.1); None where it has none."""
    if len(packed) < 6 or packed[:4] != ZSTD_MAGIC:
        return None
    descriptor = packed[4]
    single = bool(descriptor & 0x20)
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(packed[start : start + width], "little")
    known = width > 0 and len(packed) >= start + width
    return value + (256 if width == 2 else 0) if known else None


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write a metadata document, readable for people too."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (path / METADATA).write_text(text, encoding="utf-8")


def read_document(path: Path) -> Any:
    """Read the metadata document of a group or an array."""
    return json.loads((path / METADATA).read_bytes())


def groups_above(name: str) -> Sequence[str]:
    """The groups in which an array lies: "solver" for "solver/sample"."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: index + 1]) for index in range(len(parts))]
