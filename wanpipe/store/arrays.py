"""Zarr arrays on disk: float32 or uint8, codecs zstd and crc32c, one file per chunk.

Checks what zarr does not: metadata are such as wanpipe writes, every chunk exists, and no chunk
decodes to more than its size.
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
from wanpipe.runtime.documents import (
    MAX_BYTES,
    DocumentError,
    Length,
    decode,
    first_line,
    open_regular,
    read_regular,
)
from wanpipe.store.schema import ArraySpec

if TYPE_CHECKING:
    import numpy as np
    import zarr

METADATA = "zarr.json"
ZSTD_LEVEL = 1  # latents shrink by 8 % at any level
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_CHUNK_BYTES = 1 << 28  # decoded; zarr takes three times as much to read it
LARGE_BYTES = 1 << 24  # of an array, whose compression ratio is limited from here on
MAX_COMPRESSION_RATIO = 256  # latents have 1.1, frames 50
MISSING = {errno.ENOENT, errno.ENOTDIR}


class DamageError(StoreError):
    """Raise for an entry whose bytes are not those that were published."""


class NamedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A named configuration in Zarr metadata, such as a codec."""

    name: str
    configuration: dict[str, Any] = {}


class ArrayDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The `zarr.json` of a Zarr v3 array, as far as it is read."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[Length]
    data_type: Literal["float32", "uint8"]
    chunk_grid: NamedConfig
    chunk_key_encoding: NamedConfig
    codecs: list[NamedConfig]
    dimension_names: list[str]
    storage_transformers: list[Any] = []
    attributes: dict[str, Any] = {}

    def __post_init__(self) -> None:
        names = [codec.name for codec in self.codecs]
        valid = (
            names == ["bytes", "zstd", "crc32c"]
            and self.codecs[0].configuration.get("endian", "little") == "little"
            and self.chunk_grid.name == "regular"
            and self.chunk_key_encoding.name == "default"
            and self.chunk_key_encoding.configuration.get("separator") == "."
            and not (self.storage_transformers or self.attributes)
            and len(self.dimension_names) == len(self.shape) > 0
        )
        if not valid:
            raise ValueError("metadata are not those that wanpipe writes")
        self.rows  # noqa: B018

    @property
    def rows(self) -> int:
        """Rows of a chunk. Raises ValueError if chunks divide any axis but the first."""
        chunk = self.chunk_grid.configuration.get("chunk_shape")
        if not isinstance(chunk, list) or chunk[1:] != self.shape[1:]:
            raise ValueError("chunks must divide the first axis only")
        rows = chunk[0]
        if type(rows) is not int or not 0 < rows < MAX_CHUNK_BYTES:
            raise ValueError("the rows of a chunk must be a positive integer")
        return rows

    @property
    def files(self) -> list[str]:
        """Names of the chunk files, in order."""
        # "c.0.0" rather than c/0/0: a third of the files and folders to sync, list and remove
        tail = ".0" * (len(self.shape) - 1)
        return [f"c.{index}{tail}" for index in range(math.ceil(self.shape[0] / self.rows))]

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a chunk; the last one is padded with zeros."""
        item = 4 if self.data_type == "float32" else 1
        return self.rows * math.prod(self.shape[1:]) * item

    def fits(self, array: ArraySpec) -> bool:
        """Return whether an array is as its stage declares it."""
        rows = array.rows or self.shape[0]
        found = (self.dimension_names, self.data_type, self.rows)
        return found == (list(array.axes), array.dtype, rows)


@cache
def import_zarr() -> Any:
    """Import zarr, which takes a third of a second, and configure it."""
    import zarr

    # chunks of zeros are files too: a chunk that is missing would be read as zeros
    zarr.config.set({"array.write_empty_chunks": True})
    return zarr


def create_group(path: Path) -> "zarr.Group":
    """Create the Zarr group of an entry in the folder `path`."""
    group: zarr.Group = import_zarr().create_group(str(path), zarr_format=3, overwrite=False)
    return group


def create_array(
    group: "zarr.Group", name: str, declared: ArraySpec, shape: tuple[int, ...]
) -> "zarr.Array[Any]":
    """Create an array of `shape` as declared; "solver/sample" is in a group "solver"."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    chunk = (declared.rows or shape[0], *shape[1:])
    size = math.prod(chunk) * (4 if declared.dtype == "float32" else 1)
    if size > MAX_CHUNK_BYTES:
        raise StoreError(
            f"{name} must have chunks of at most {MAX_CHUNK_BYTES} bytes, got {size}; make a "
            "smaller video"
        )
    parent, _, last = name.rpartition("/")
    home = group.require_group(parent) if parent else group
    array: zarr.Array[Any] = home.create_array(
        last,
        shape=shape,
        chunks=chunk,
        dtype=declared.dtype,
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        filters=None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=list(declared.axes),
    )
    return array


def read_metadata(path: Path) -> ArrayDocument:
    """Read and check the metadata of the array at `path`. Raises DamageError, or StoreError if the
    disk cannot read them.
    """
    with damage_errors(path):
        return decode(read_regular(path / METADATA), ArrayDocument)


def read_blocks(path: Path) -> Iterator["np.ndarray"]:
    """Yield the array at `path` chunk by chunk along its first axis. Raises DamageError, or
    StoreError if the disk cannot read it.
    """
    document = read_metadata(path)
    with damage_errors(path):
        check_chunks(path, document)
        array = import_zarr().open_array(str(path), mode="r", zarr_format=3)
    for start in range(0, document.shape[0], document.rows):
        with damage_errors(path):
            block: np.ndarray = array[start : start + document.rows]
        yield block


@contextmanager
def damage_errors(path: Path) -> Iterator[None]:
    """Turn errors of files and codecs into DamageError if something is missing or wrong, into
    StoreError if the disk cannot read what it has.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in MISSING:
            raise DamageError(f"{path} cannot be read ({first_line(error)})") from error
        raise StoreError(
            f"{path} cannot be read: {error.strerror}; it was left as it is"
        ) from error
    except (ValueError, RuntimeError, LookupError, TypeError) as error:  # what codecs raise
        raise DamageError(f"{path} cannot be read ({first_line(error)})") from error


def check_chunks(path: Path, document: ArrayDocument) -> None:
    """Check the decoded size in the header of every chunk, since decoders allocate it. Raises
    DocumentError, or OSError for a missing chunk.
    """
    size, total = document.chunk_bytes, 0
    for name in document.files:
        with open_regular(path / name) as file:
            head, stored = file.read(18), file.seek(0, 2)
        total += stored
        if size > MAX_CHUNK_BYTES or content_size(head) != size:
            raise DocumentError("a chunk does not have the size of its array")
    decoded = size * len(document.files)
    if decoded > LARGE_BYTES and decoded > MAX_COMPRESSION_RATIO * total:
        raise DocumentError(f"{total} bytes would decode to {decoded}")


def content_size(head: bytes) -> int | None:
    """Return the decoded size in a zstd frame header (RFC 8878, 3.1.1), None if it has none."""
    if len(head) < 6 or head[:4] != ZSTD_MAGIC:
        return None
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(head[start : start + width], "little")
    known = width > 0 and len(head) >= start + width
    return value + (256 if width == 2 else 0) if known else None


def read_document(path: Path, limit: int = MAX_BYTES) -> Any:
    """Read the `zarr.json` of a group or an array as a dict. Raises OSError or DocumentError."""
    return decode(read_regular(path / METADATA, limit), dict[str, Any])
