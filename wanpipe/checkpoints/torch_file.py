"""Lists the tensors of a torch checkpoint in zip format, without torch.

Reads no numbers. Stricter than zip asks, so that nothing in a hostile archive can grow: no
compression, no encryption, no name twice, no name that leaves the archive, no members that overlap.
Legacy files (before torch 1.6) are refused.
"""

import io
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from wanpipe.checkpoints import unpickle_tensors
from wanpipe.checkpoints.dtypes import NUMPY_DTYPES
from wanpipe.checkpoints.sandbox import SandboxError, run_limited
from wanpipe.checkpoints.tensors import (
    MAX_AXES,
    TensorInfo,
    TensorLocation,
    check_names,
    quote_name,
)
from wanpipe.errors import CheckpointError
from wanpipe.runtime.documents import Count, DocumentError, decode

DIRECTORY_LIMIT = 1 << 22  # bytes; the largest real checkpoint needs 200 kB
PICKLE_LIMIT = 1 << 21  # bytes; the pickle of a 14B model has 200 kB
SECONDS, MEMORY = 5, 1 << 29  # for a pickle: processor time, bytes; an honest one takes a tenth
LENGTHS = struct.Struct("<26x2H")  # of name and extra field, in a member's own header
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# what zipfile and struct raise for a damaged archive; no list is documented
DAMAGE_ERRORS = (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError)
RESAVE = "save it again with `torch.save` (its zip format)"
Axes = Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_AXES)]


class View(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A tensor as `unpickle_tensors` writes it; `length` is that of its storage, in numbers."""

    name: str
    key: str
    dtype: str
    length: Count
    offset: Count
    shape: Axes
    strides: Axes


@dataclass(frozen=True)
class Member:
    """Where one member's bytes lie in the archive file."""

    offset: int
    size: int


class BoundedFile(io.FileIO):
    """A file that never gives more at once than a zip directory may have."""

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes; less than asked is an archive cut short, to `zipfile`."""
        return super().read(
            DIRECTORY_LIMIT if size is None or size < 0 else min(size, DIRECTORY_LIMIT)
        )


def list_tensors(file: BinaryIO, path: Path) -> dict[str, tuple[TensorInfo, TensorLocation]]:
    """Map names to what and where each tensor is. Raises CheckpointError that names `path`."""
    file.seek(0)
    start = file.read(len(LEGACY))
    if start == LEGACY:
        raise CheckpointError(f"{path} is in torch's legacy format; {RESAVE}")
    if not start.startswith(b"PK\3\4"):
        raise CheckpointError(
            f"{path} is not a torch checkpoint (no zip archive); download it again"
        )
    found = list_members(path)
    pickles = [name for name in found if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is a zip archive without exactly one data.pkl; {RESAVE}")
    root = pickles[0].removesuffix("data.pkl")
    if read_member(file, found.get(f"{root}byteorder"), path) == b"big":
        raise CheckpointError(
            f"{path} holds big-endian numbers; {RESAVE} on a little-endian machine"
        )
    views = unpickle_views(read_member(file, found[pickles[0]], path), path)
    check_names([view.name for view in views], path)
    return {
        view.name: locate_tensor(view, found.get(f"{root}data/{view.key}"), path) for view in views
    }


def list_members(path: Path) -> dict[str, Member]:
    """Map the names in a zip archive to its members. Raises CheckpointError."""
    found: dict[str, Member] = {}
    end = 0
    try:
        with BoundedFile(path) as source, zipfile.ZipFile(source) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
                if complaint := refused_reason(info, found):
                    raise CheckpointError(f"{path} holds {complaint}")
                archive.open(info).close()  # checks the member's own header
                # zipfile does not tell where the bytes are, which are read in parts and in place
                source.seek(info.header_offset)
                offset = info.header_offset + 30 + sum(LENGTHS.unpack(source.read(LENGTHS.size)))
                if info.header_offset < end:
                    raise zipfile.BadZipFile(f"member {quote_name(info.filename)} overlaps another")
                end = offset + info.file_size
                found[info.filename] = Member(offset, info.file_size)
    except DAMAGE_ERRORS as error:
        reason = quote_name(str(error))
        raise CheckpointError(
            f"{path} is a damaged zip archive or cut short ({reason}); download it again"
        ) from error
    return found


def refused_reason(info: zipfile.ZipInfo, found: dict[str, Member]) -> str:
    """Tell what no torch checkpoint does with a member, or ""."""
    name = info.filename
    if name in found:
        return f"the zip member {quote_name(name)} twice"
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return f"a zip member whose name leaves the archive: {quote_name(name)}"
    if info.flag_bits & 1 or info.compress_type or info.compress_size != info.file_size:
        return f"the compressed or encrypted zip member {quote_name(name)}; {RESAVE}"
    return ""


def read_member(file: BinaryIO, member: Member | None, path: Path) -> bytes:
    """Read a small member; return empty bytes if it is absent."""
    if member is None:
        return b""
    if member.size > PICKLE_LIMIT:
        raise CheckpointError(
            f"{path} has a table of {member.size} bytes, more than {PICKLE_LIMIT}; {RESAVE}"
        )
    file.seek(member.offset)
    return file.read(member.size)


def unpickle_views(data: bytes, path: Path) -> list[View]:
    """Give the tensors that a pickle describes."""
    try:
        return decode(
            run_limited(Path(unpickle_tensors.__file__), data, SECONDS, MEMORY), list[View]
        )
    except (SandboxError, DocumentError) as error:
        raise CheckpointError(
            f"{path} holds a pickle that is no table of tensors: {quote_name(str(error))}; "
            "download it again, or use a safetensors file"
        ) from error


def locate_tensor(
    view: View, member: Member | None, path: Path
) -> tuple[TensorInfo, TensorLocation]:
    """Translate a view of a storage into bytes of the file."""
    subject, width = f"{path}: {quote_name(view.name)}", NUMPY_DTYPES[view.dtype].itemsize
    if member is None or member.size != view.length * width:
        size = "no" if member is None else f"{member.size}"
        raise CheckpointError(
            f"{path}: storage {quote_name(view.key)} needs {view.length * width} bytes, the "
            f"archive holds {size}; download it again"
        )
    count, contiguous = prod(view.shape), True
    spans = list(zip(view.shape, view.strides, strict=False))
    last = view.offset + sum((length - 1) * stride for length, stride in spans)
    # more numbers than its storage: zero strides would make any size out of nothing
    fills = count <= view.length and (not count or last < view.length)
    if len(view.shape) != len(view.strides) or not fills:
        raise CheckpointError(
            f"{subject} has shape {view.shape} and strides {view.strides}, which its storage of "
            f"{view.length} cannot fill; download it again"
        )
    step = 1  # stride of the same shape without gaps
    for length, stride in reversed(spans):
        contiguous &= length == 1 or stride == step
        step *= length
    strides = None if contiguous or not count else view.strides
    offset = member.offset + view.offset * width
    return TensorInfo(view.shape, view.dtype, count * width), TensorLocation(0, offset, strides)
