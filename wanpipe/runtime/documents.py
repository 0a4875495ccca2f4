"""JSON documents: the only module that turns the contents of a file into typed data.

A document is declared once, as a `Document` with types and ranges. One that does not fit its
declaration (types, ranges, missing or unknown fields, size) is refused with one line.
"""

import json
import os
import select
import stat
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec

from wanpipe.runtime import interrupt, text

MAX_BYTES = 1 << 20  # of a document, unless its reader gives another limit
STDIN, POLL_SECONDS = 0, 0.1
MAX_LINE = 300  # characters of an error, which may quote a file

Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Seed = Annotated[int, msgspec.Meta(ge=0)]  # of any size, as NumPy's Philox takes it
Length = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
Hash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=1 << 17)]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\Z")]
T = TypeVar("T")


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of JSON documents. Fields without a default are required, unknown fields are refused.

    A field whose default is `msgspec.UNSET` is not in the JSON unless it is set.
    """


class DocumentError(ValueError):
    """Raise for JSON that does not fit its declaration; the message is one line, without a file."""


def decode(data: bytes | str, kind: type[T]) -> T:
    """Decode JSON as `kind`. Raises DocumentError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DocumentError(first_line(error)) from error


def convert(data: Any, kind: type[T], strict: bool = True) -> T:
    """Convert plain data (dicts, lists, numbers) to `kind`, integers to floats where `kind` has
    floats, and strings to numbers unless `strict`. Raises DocumentError.
    """
    try:
        return msgspec.convert(data, kind, strict=strict)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DocumentError(first_line(error)) from error


def load(path: Path, kind: type[T], limit: int = MAX_BYTES) -> T:
    """Read the file `path` as `kind`. Raises OSError, or DocumentError if it is not a regular file,
    is larger than `limit` bytes or does not fit.
    """
    return decode(read_regular(path, limit), kind)


def read_regular(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a small regular file whole; never waits for a named pipe. Raises OSError or
    DocumentError.
    """
    with open_regular(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it grew meanwhile
        raise DocumentError(f"it is larger than {limit} bytes")
    return data


def read_stream(path: Path, limit: int) -> bytes:
    """Read a file or a pipe to its end; a pipe that nobody writes to is empty. Raises OSError, or
    DocumentError where it is larger than `limit` bytes.
    """
    with open(path, "rb", opener=_open_nonblocking) as file:
        os.set_blocking(file.fileno(), True)
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DocumentError(f"it is larger than {limit} bytes")
    return data


def read_stdin(limit: int) -> bytes:
    """Read standard input to its end. Raises OSError, Interrupted after a signal, or DocumentError
    where it is larger than `limit` bytes.
    """
    data = b""
    while len(data) <= limit:
        interrupt.check()
        if select.select([STDIN], [], [], POLL_SECONDS)[0]:
            part = os.read(STDIN, limit)
            if not part:
                return data
            data += part
    raise DocumentError(f"it is larger than {limit} bytes")


def open_regular(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file to read; never waits for a named pipe. Raises OSError, or DocumentError
    where it is another kind of file or larger than `limit` bytes.
    """
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and (limit is None or status.st_size <= limit):
        return file
    file.close()
    if stat.S_ISREG(status.st_mode):
        raise DocumentError(f"it is larger than {limit} bytes")
    raise DocumentError("it is not a regular file")


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def to_builtins(document: Any) -> Any:
    """Return a document as dicts, lists, strings and numbers."""
    return msgspec.to_builtins(document)


def encode(document: Any) -> bytes:
    """Write a document as indented JSON, readable for people too. Raises ValueError for NaN."""
    data = text.storable(to_builtins(document))
    written = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    return written.encode() + b"\n"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none; short, and fit to print."""
    return text.printable((str(error).splitlines() or [type(error).__name__])[0][:MAX_LINE])
