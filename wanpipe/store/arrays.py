"""Arrays on disk, written and read by zarr: float32 or uint8, zstd then crc32c, one file a chunk.

Checks what zarr does not promise: metadata are of the form that wanpipe writes, every chunk is
there, and no chunk unfolds beyond its size.
"""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from wanpipe.errors import StoreError
from wanpipe.runtime.documents import LIMIT, DocumentError, Length, decode, first_line, read_regular
from wanpipe.store.schema import Array

if TYPE_CHECKING:
    import numpy as np
    import zarr

METADATA = "zarr.json"
ZSTD_LEVEL = 1  # latents shrink by 8 % at any level
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LARGEST = 1 << 31  # bytes of a chunk, decoded
LARGEST_RATIO = 256  # of decoded to stored bytes of a large chunk; latents have 1.1, frames 50
ABSENT = {errno.ENOENT, errno.ENOTDIR}


class DamageError(StoreError):
    """Raise for an entry whose bytes are not those that were published."""


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A named choice of Zarr's metadata with its configuration."""

    name: str
    configuration: dict[str, Any] = {}


class ArrayDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of an array, as far as they are read: a `zarr.json` of Zarr v3."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[Length]
    data_type: Literal["float32", "uint8"]
    chunk_grid: Named
    chunk_key_encoding: Named
    codecs: list[Named]
    dimension_names: list[str]
    storage_transformers: list[Any] = []
    attributes: dict[str, Any] = {}

    def __post_init__(self) -> None:
        names = [codec.name for codec in self.codecs]
        plain = (
            names == ["bytes", "zstd", "crc32c"]
            and self.codecs[0].configuration.get("endian", "little") == "little"
            and self.chunk_grid.name == "regular"
            and self.chunk_key_encoding.name == "default"
            and self.chunk_key_encoding.configuration.get("separator") == "."
            and not (self.storage_transformers or self.attributes)
            and len(self.dimension_names) == len(self.shape) > 0
        )
        if not plain:
            raise ValueError("metadata are not those that wanpipe writes")
        self.rows  # noqa: B018

    @property
    def rows(self) -> int:
        """Rows of a chunk. Raises ValueError unless chunks cut the first axis alone."""
        chunk = self.chunk_grid.configuration.get("chunk_shape")
        if not isinstance(chunk, list) or chunk[1:] != self.shape[1:]:
            raise ValueError("chunks must cut the first axis alone")
        rows = chunk[0]
        if type(rows) is not int or not 0 < rows < LARGEST:
            raise ValueError("the rows of a chunk must be a count")
        return rows

    @property
    def files(self) -> list[str]:
        """Names of the chunk files, in order."""
        # "c.0.0" rather than c/0/0: a third of the files and folders to sync, list and remove
        tail = ".0" * (len(self.shape) - 1)
        return [f"c.{index}{tail}" for index in range(math.ceil(self.shape[0] / self.rows))]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk, decoded; the last one is filled up with zeros."""
        item = 4 if self.data_type == "float32" else 1
        return self.rows * math.prod(self.shape[1:]) * item

    def fits(self, array: Array) -> bool:
        """Whether an array is as its stage declares it."""
        rows = array.rows or self.shape[0]
        found = (self.dimension_names, self.data_type, self.rows)
        return found == (list(array.axes), array.dtype, rows)


@cache
def zarr_library() -> Any:
    """Import zarr, which takes a third of a second, and set what holds for all its arrays."""
    import zarr

    # chunks of zeros are files too: a chunk that is missing would be read as zeros
    zarr.config.set({"array.write_empty_chunks": True})
    return zarr


def create_group(path: Path) -> "zarr.Group":
    """Create the Zarr group of an entry at `path`, a folder without one."""
    group: zarr.Group = zarr_library().create_group(str(path), zarr_format=3, overwrite=False)
    return group


def create_array(
    group: "zarr.Group", name: str, declared: Array, shape: tuple[int, ...]
) -> "zarr.Array[Any]":
    """Create an array of `shape` as it is declared; "solver/sample" lies in a group of its own."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    parent, _, last = name.rpartition("/")
    home = group.require_group(parent) if parent else group
    array: zarr.Array[Any] = home.create_array(
        last,
        shape=shape,
        chunks=(declared.rows or shape[0], *shape[1:]),
        dtype=declared.dtype,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        filters=None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=list(declared.axes),
    )
    return array


def read_metadata(path: Path) -> ArrayDocument:
    """Read and check the metadata of the array at `path`. Raises DamageError, or StoreError where
    the disk does not give them.
    """
    with reading(path):
        return decode(read_regular(path / METADATA), ArrayDocument)


def read_blocks(path: Path) -> Iterator["np.ndarray"]:
    """Read the array at `path` chunk by chunk along its first axis. Raises DamageError, or
    StoreError where the disk does not give it.
    """
    document = read_metadata(path)
    with reading(path):
        check_chunks(path, document)
        array = zarr_library().open_array(str(path), mode="r", zarr_format=3)
    for start in range(0, document.shape[0], document.rows):
        with reading(path):
            block: np.ndarray = array[start : start + document.rows]
        yield block


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what files and codecs raise while an entry is read into one line.

    What is missing or wrong is damage; a disk that does not give what it has is not.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in ABSENT:
            raise DamageError(f"{path} cannot be read ({first_line(error)})") from error
        raise StoreError(
            f"{path} cannot be read: {error.strerror}; it was left as it is"
        ) from error
    except (ValueError, RuntimeError, LookupError, TypeError) as error:  # what codecs raise
        raise DamageError(f"{path} cannot be read ({first_line(error)})") from error


def check_chunks(path: Path, document: ArrayDocument) -> None:
    """Raise DocumentError for a chunk that would unfold to another size than it must have, and
    OSError for one that is missing: decoders allocate what a chunk's header says.
    """
    size = document.chunk_bytes
    for name in document.files:
        with (path / name).open("rb") as file:
            head, stored = file.read(18), file.seek(0, 2)
        large = size > LARGEST or (size > 1 << 24 and size > LARGEST_RATIO * stored)
        if large or content_size(head) != size:
            raise DocumentError("a chunk does not have the size of its array")


def content_size(head: bytes) -> int | None:
    """The decoded size in the header of a zstd frame (RFC 8878, 3.1.1); None where it has none."""
    if len(head) < 6 or head[:4] != ZSTD_MAGIC:
        return None
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(head[start : start + width], "little")
    known = width > 0 and len(head) >= start + width
    return value + (256 if width == 2 else 0) if known else None


def read_document(path: Path, limit: int = LIMIT) -> Any:
    """Read the metadata document of a group or an array as plain data. Raises OSError or
    DocumentError.
    """
    return decode(read_regular(path / METADATA, limit), dict[str, Any])
