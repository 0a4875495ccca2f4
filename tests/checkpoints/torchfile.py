"""Writes torch checkpoints in zip format without torch, honest or hostile, one pickle instruction
at a time.
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<u2": "BFloat16Storage",
    "<i8": "LongStorage",
}


@dataclass(frozen=True)
class Raw:
    """Pickle instructions as they are."""

    code: bytes


def name(module: str, attribute: str) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function: Raw, *arguments: Any) -> Raw:
    return Raw(function.code + encode(arguments) + b"R")


def encode(value: Any) -> bytes:
    """Pickle instructions that push `value`."""
    match value:
        case Raw(code):
            return code
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case dict():
            pairs = b"".join(encode(key) + encode(item) for key, item in value.items())
            return b"}(" + pairs + b"u"
    raise TypeError(value)


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + encode(value) + b"."


def storage(key: str, length: int, kind: str = "FloatStorage") -> Raw:
    identity = ("storage", name("torch", kind), key, "cpu", length)
    return Raw(encode(identity) + b"Q")


def tensor(source: Raw, shape: Any, strides: Any, offset: Any = 0) -> Raw:
    ordered = call(name("collections", "OrderedDict"))
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, source, offset, shape, strides, False, ordered)


def plain(key: str, array: np.ndarray) -> Raw:
    """A contiguous tensor that fills the storage `key`."""
    strides, step = [], 1
    for length in reversed(array.shape):
        strides.insert(0, step)
        step *= length
    kind = CLASSES[array.dtype.str]
    return tensor(storage(key, array.size, kind), array.shape, tuple(strides))


def write(
    path: Path, data: bytes, storages: dict[str, bytes], method: int = zipfile.ZIP_STORED
) -> Path:
    """Write the archive around a pickle and the bytes of its storages."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write an honest checkpoint of contiguous tensors."""
    table = {label: plain(str(index), array) for index, (label, array) in enumerate(arrays.items())}
    contents = {str(index): array.tobytes() for index, array in enumerate(arrays.values())}
    return write(path, pickled(table), contents)


def write_sparse(path: Path, data: bytes, lengths: dict[str, int]) -> Path:
    """Write an archive in zip64 form whose storages are zeros that take no room on the disk."""
    members = [(b"archive/data.pkl", len(data))]
    members += [(f"archive/data/{key}".encode(), length) for key, length in lengths.items()]
    full = [0xFFFFFFFF] * 2  # see the zip64 field
    directory = b""
    with path.open("wb") as file:
        for label, size in members:
            start, width = file.tell(), len(label)
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, *full, width, 20))
            file.write(label + struct.pack("<HHQQ", 1, 16, size, size))
            begin = file.tell()
            file.write(data if size == len(data) else b"")
            file.seek(begin + size)
            kind = (b"PK\1\2", 45, 45, 0, 0, 0, 0, 0)
            directory += struct.pack("<4s6H3L5H2L", *kind, *full, width, 28, 0, 0, 0, 0, 0xFFFFFFFF)
            directory += label + struct.pack("<HHQQQ", 1, 24, size, size, start)
        start, length, count = file.tell(), len(directory), len(members)
        file.write(directory)
        ends = (count, count, length, start)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, *ends))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, start + length, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, *full, 0))
    return path
