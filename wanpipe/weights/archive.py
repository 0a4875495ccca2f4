"""Finds the members of an uncompressed zip archive, such as a torch checkpoint of any size.

Reads the directory only, in bounded memory, and is stricter than zip asks: no compression, no
encryption, no name twice, no name that leaves the archive, no members that overlap. So nothing in a
hostile archive can grow.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wanpipe.errors import CheckpointError

DIRECTORY_LIMIT = 1 << 24  # bytes; the largest real checkpoint needs 200 kB
RESAVE = "save it again with `torch.save` (its zip format)"

END = struct.Struct("<4s4H2LH")  # end of central directory
LOCATOR = struct.Struct("<4sLQL")  # where the zip64 end lies
END64 = struct.Struct("<4sQ2H2L4Q")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    """Where one member's bytes lie in the archive file."""

    offset: int
    size: int


def members(file: BinaryIO, path: Path) -> dict[str, Member]:
    """Map the names in a zip archive to its members. Raises CheckpointError that names `path`."""
    size = file.seek(0, 2)
    try:
        start, length = _directory(file, size)
        found = _entries(_at(file, start, length), start, file)
    except (struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is a damaged zip archive: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} {error}") from error
    return found


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise ValueError("ends inside the zip directory; download it again")
    return data


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Locate the central directory: its offset and length."""
    reach = min(size, END.size + 0xFFFF)
    tail = _at(file, size - reach, reach)
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise ValueError("is cut short: the zip directory at its end is missing; download it again")
    _, disk, first_disk, _, _, length, start, _ = END.unpack_from(tail, place)
    end = size - reach + place
    if place >= LOCATOR.size and tail.startswith(b"PK\6\7", place - LOCATOR.size):
        end = LOCATOR.unpack_from(tail, place - LOCATOR.size)[2]
        if end + END64.size > size:
            raise ValueError("is a damaged zip archive: its zip64 directory lies past its end")
        fields = END64.unpack(_at(file, end, END64.size))
        if fields[0] != b"PK\6\6":
            raise ValueError("is a damaged zip archive: no zip64 directory where it should be")
        disk, first_disk, length, start = fields[4], fields[5], fields[8], fields[9]
    if disk or first_disk:
        raise ValueError("is one part of a split zip archive; join the parts")
    if length > DIRECTORY_LIMIT:
        raise ValueError(f"has a zip directory of {length} bytes, more than {DIRECTORY_LIMIT}")
    if start + length > end:
        raise ValueError("is a damaged zip archive: its directory lies past its end")
    return start, length


def _entries(directory: bytes, limit: int, file: BinaryIO) -> dict[str, Member]:
    """Decode every entry of the central directory; all data must lie before `limit`, in turn."""
    found: dict[str, Member] = {}
    spans: list[tuple[int, int, str]] = []
    position = 0
    while position < len(directory):
        name, header, size, position = _entry(directory, position)
        if name in found:
            raise ValueError(f"holds the zip member {name!r} twice")
        member = Member(_data_offset(file, header, name), size)
        found[name] = member
        spans.append((header, member.offset + size, name))
    spans.sort()
    for (_, stop, name), (start, _, _) in zip(spans, [*spans[1:], (limit, 0, "")], strict=True):
        if stop > start:
            raise ValueError(f"is a damaged zip archive: the member {name!r} overlaps the next")
    return found


def _entry(directory: bytes, position: int) -> tuple[str, int, int, int]:
    """Decode the entry at `position`: name, offset of local header, size, next position."""
    fields = ENTRY.unpack_from(directory, position)
    signature, flags, method, packed, size = fields[0], fields[3], fields[4], fields[8], fields[9]
    name_length, extra_length, comment_length, header = *fields[10:13], fields[16]
    if signature != b"PK\1\2":
        raise ValueError("is a damaged zip archive: its directory does not list members")
    position += ENTRY.size
    name = directory[position : position + name_length].decode("utf-8")
    position += name_length
    extra = directory[position : position + extra_length]
    size, packed, header = _wide(extra, [size, packed, header])
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"holds a zip member whose name leaves the archive: {name!r}")
    if flags & 1 or method or packed != size:
        raise ValueError(f"holds the compressed or encrypted zip member {name!r}; {RESAVE}")
    return name, header, size, position + extra_length + comment_length


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Replace the values that overflowed 32 bits by those of the zip64 field in `extra`."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        if tag == 1:
            wide = iter(
                struct.iter_unpack("<Q", extra[position + 4 : position + 4 + length // 8 * 8])
            )
            return [next(wide, (value,))[0] if value == 0xFFFFFFFF else value for value in values]
        position += 4 + length
    return values


def _data_offset(file: BinaryIO, header: int, name: str) -> int:
    """Find where the data of the member with this local header begins."""
    if header >= 1 << 62:
        raise ValueError(f"is a damaged zip archive: the member {name!r} lies past its end")
    fields = LOCAL.unpack(_at(file, header, LOCAL.size))
    encoded = name.encode("utf-8")
    if fields[0] != b"PK\3\4" or _at(file, header + LOCAL.size, fields[9]) != encoded:
        raise ValueError(f"is a damaged zip archive: the member {name!r} is not where it should be")
    return header + LOCAL.size + int(fields[9]) + int(fields[10])
