"""Lists the tensors of a GGUF file, and computes the values of quantized ones.

The header is read here, because the reader of the gguf package believes what a file says of itself:
a count of 2^62 keeps it busy forever. Of that package are the quantized types and their arithmetic.
Source: docs/gguf.md of ggml; ComfyUI-GGUF (tools/convert.py) for shapes of more than four axes.
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np

from wanpipe.checkpoints.dtypes import NUMPY_DTYPES, Array, Floats
from wanpipe.checkpoints.tensors import (
    MAX_AXES,
    MAX_AXIS_LENGTH,
    MAX_NAME,
    MAX_TENSORS,
    Quantization,
    TensorInfo,
    TensorLocation,
    check_names,
    quote_name,
)
from wanpipe.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_LIMIT = 1 << 24  # bytes; that of umT5 has 7 MB: it holds the tokenizer
DEFAULT_ALIGNMENT = 32  # bytes
ALIGNMENTS = tuple(1 << bit for bit in range(21))
CHUNK = 1 << 16  # numbers that are computed at a time: their parts stay in a core's cache

STRING, ARRAY = 8, 9
# formats of the other values, by their number in the file
VALUES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
INTEGERS = "BbHhIiQq"
LENGTH = struct.Struct("<Q")  # of a string
# types that need no arithmetic, by their number in the file, as safetensors names them
PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
ARCHITECTURE, ALIGNMENT = "general.architecture", "general.alignment"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # before the name of a tensor
CONVOLUTION = "patch_embedding"  # ends the names of the transformers' only convolutions

Value = str | int | tuple[int, ...]
Tensors = dict[str, tuple[TensorInfo, TensorLocation]]


class Header:
    """The bytes of a header in turn; never more than the file has, or than `HEADER_LIMIT`."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.path = path
        self.size = stream.seek(0, 2)  # of the file
        self.offset = 0
        stream.seek(0)
        self._data = stream.read(HEADER_LIMIT)

    def skip(self, count: int) -> int:
        """Pass over `count` bytes, and return where they begin."""
        start, self.offset = self.offset, self.offset + count
        if self.offset > len(self._data):
            if self.offset > self.size:
                raise CheckpointError(f"{self.path} ends inside its header; download it again")
            raise CheckpointError(f"{self.path} has a header of more than {HEADER_LIMIT} bytes")
        return start

    def bytes(self, count: int) -> bytes:
        """Read `count` bytes."""
        start = self.skip(count)
        return self._data[start : start + count]

    def numbers(self, code: str, count: int = 1) -> tuple[int, ...]:
        """Read `count` numbers whose format `struct` knows as `code`."""
        form = f"<{count}{code}"
        return struct.unpack_from(form, self._data, self.skip(struct.calcsize(form)))

    def number(self, code: str) -> int:
        """Read one number."""
        return self.numbers(code)[0]

    def text(self, what: str) -> str:
        """Read a string of at most `MAX_NAME` characters; `what` it is, for the error."""
        length = self.number("Q")
        if length > 4 * MAX_NAME:  # bytes that a character of UTF-8 takes at most
            raise CheckpointError(
                f"{self.path} has {what} of {length} bytes, more than {4 * MAX_NAME}; "
                "download it again"
            )
        try:
            return self.bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path} has {what} that is not UTF-8; download it again"
            ) from error

    def value(self, kind: int, wanted: bool) -> Value | None:
        """Read a value of the metadata if it is wanted: text, an integer or integers."""
        if kind == STRING and wanted:
            return self.text("a value")
        single, count = kind != ARRAY, 1
        if not single:
            kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            end = self.offset  # a local name: there may be millions
            while count and end + LENGTH.size <= len(self._data):
                end += LENGTH.size + LENGTH.unpack_from(self._data, end)[0]
                count -= 1
            self.skip(end + LENGTH.size * bool(count) - self.offset)
            return None
        code = VALUES.get(kind)
        if code is None:
            raise CheckpointError(f"{self.path} has a value of the unknown type {kind}")
        if not wanted or code not in INTEGERS or count > MAX_AXES:
            self.skip(count * struct.calcsize(f"<{code}"))
            return None
        found = self.numbers(code, count)
        return found[0] if single else found


def list_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Map names to what and where each tensor is; and give the name of the architecture.

    Raises CheckpointError that names `path`.
    """
    with path.open("rb") as stream:
        header = Header(stream, path)
        if header.size < len(MAGIC) or header.bytes(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{path} is not a GGUF file; download it again")
        version = header.number("I")
        if version not in VERSIONS:
            what = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise CheckpointError(
                f"{path} is {what} GGUF, which wanpipe does not read; use a file of version "
                f"{VERSIONS[-1]}"
            )
        count, values = header.numbers("Q", 2)
        if count > MAX_TENSORS:
            raise CheckpointError(
                f"{path} holds {count} tensors, more than {MAX_TENSORS}; use the file of one "
                "network"
            )
        metadata = read_metadata(header, values)
        found = list(read_infos(header, count, metadata))
    check_names([name for name, _, _ in found], path)
    alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment not in ALIGNMENTS:
        raise CheckpointError(
            f"{path}: {ALIGNMENT} must be a power of two up to {ALIGNMENTS[-1]}, got "
            f"{quote_name(str(alignment))}"
        )
    tensors = place(found, header, alignment)
    architecture = metadata.get(ARCHITECTURE, "")
    return with_convolutions(tensors), {ARCHITECTURE: str(architecture)}


def read_metadata(header: Header, count: int) -> dict[str, Value]:
    """Read what is needed of the metadata: architecture, alignment, original shapes."""
    found: dict[str, Value] = {}
    for _ in range(count):
        name = header.text("a key")
        wanted = name in (ARCHITECTURE, ALIGNMENT) or name.startswith(ORIGINAL_SHAPE)
        value = header.value(header.number("I"), wanted)
        if wanted and (value is None or name in found):
            raise CheckpointError(
                f"{header.path}: {quote_name(name)} must be given once, as text or up to "
                f"{MAX_AXES} integers; download it again"
            )
        if value is not None:
            found[name] = value
    return found


def read_infos(
    header: Header, count: int, metadata: dict[str, Value]
) -> Iterator[tuple[str, TensorInfo, TensorLocation]]:
    """Read what and where the tensors are; offsets count from the end of the header."""
    for _ in range(count):
        name = header.text("the name of a tensor")
        subject, axes = f"{header.path}: {quote_name(name)}", header.number("I")
        check_axes(axes, subject)
        stored = header.numbers("Q", axes)[::-1]
        number, offset = header.number("I"), header.number("Q")
        shape = metadata.get(ORIGINAL_SHAPE + name, stored)
        if not isinstance(shape, tuple) or prod(shape) != prod(stored):
            raise CheckpointError(
                f"{subject} has {prod(stored)} numbers, which its original shape "
                f"{quote_name(str(shape))} cannot hold; download it again"
            )
        check_axes(len(shape), subject, shape)
        if number in PLAIN:
            dtype = PLAIN[number]
            size = prod(shape) * NUMPY_DTYPES[dtype].itemsize
            yield name, TensorInfo(shape, dtype, size), TensorLocation(0, offset)
            continue
        kind = find_quantization(number, subject)
        row = stored[-1] if stored else 1
        if row % kind.block:
            raise CheckpointError(
                f"{subject} has rows of {row} numbers, which {kind.name} cannot split into blocks "
                f"of {kind.block}; download it again"
            )
        # its values are given, so they are what is described
        info = TensorInfo(shape, "F32", prod(shape) * NUMPY_DTYPES["F32"].itemsize)
        yield name, info, TensorLocation(0, offset, quantization=kind)


def check_axes(axes: int, subject: str, shape: tuple[int, ...] = ()) -> None:
    """Raise CheckpointError for shapes that NumPy cannot hold."""
    if axes > MAX_AXES or not all(0 <= length < MAX_AXIS_LENGTH for length in shape):
        raise CheckpointError(f"{subject} has a shape of {axes} axes that no network has")


def place(
    found: list[tuple[str, TensorInfo, TensorLocation]], header: Header, alignment: int
) -> Tensors:
    """Turn offsets into places in the file. Raises CheckpointError for tensors that are not in it,
    not aligned, overlap, or are given twice.
    """
    start, end = -(-header.offset // alignment) * alignment, 0
    tensors: Tensors = {}
    for name, info, location in found:
        if name in tensors:
            raise CheckpointError(f"{header.path} holds {quote_name(name)} twice")
        tensors[name] = info, replace(location, offset=start + location.offset)
    for offset, size, name in sorted(
        (location.offset, stored_bytes(info, location), name) for name, info, location in found
    ):
        subject = f"{header.path}: {quote_name(name)}"
        if offset % alignment or offset < end:
            raise CheckpointError(f"{subject} is not at a place of its own; download it again")
        end = offset + size
        if start + end > header.size:
            raise CheckpointError(
                f"{subject} ends at byte {start + end} of a file of {header.size}; download it "
                "again"
            )
    return tensors


def stored_bytes(info: TensorInfo, location: TensorLocation) -> int:
    """Size of a tensor in the file."""
    if location.quantization is None:
        return info.nbytes
    return prod(info.shape) // location.quantization.block * location.quantization.size


def with_convolutions(tensors: Tensors) -> Tensors:
    """Give convolutions all axes where stable-diffusion.cpp stored (O * I, *K) for (O, I, *K)."""
    result = dict(tensors)
    for name, (info, location) in tensors.items():
        module, _, leaf = name.rpartition(".")
        if not module.endswith(CONVOLUTION) or leaf != "weight" or len(info.shape) != 4:
            continue
        bias = tensors.get(f"{module}.bias")
        outputs = prod(bias[0].shape) if bias is not None else 0
        if outputs and info.shape[0] % outputs == 0:
            shape = (outputs, info.shape[0] // outputs, *info.shape[1:])
            result[name] = replace(info, shape=shape), location
    return result


def find_quantization(number: int, subject: str) -> Quantization:
    """Look up a quantized type. Raises CheckpointError for one that the gguf package does not
    compute, and where that package is missing.
    """
    gguf = import_gguf(subject)
    kind = {kind.value: kind for kind in gguf.GGMLQuantizationType}.get(number)
    if kind is not None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
            return Quantization(kind.name, block, size)
        except NotImplementedError:  # refused below
            pass
    name = f"number {number}" if kind is None else kind.name
    raise CheckpointError(
        f"{subject} has the type {name}, which the gguf package does not compute; use a file with "
        "Q8_0, Q6_K, Q5_K or Q4_K"
    )


def import_gguf(subject: str) -> ModuleType:
    """Import the gguf package. Raises CheckpointError where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            f"{subject} is quantized, which needs gguf, which is not installed; run "
            "`pip install 'wanpipe[gguf]'`"
        ) from error
    return gguf


def dequantize(data: Array, quantization: Quantization) -> Floats:
    """Compute the values of whole blocks, (count * size) bytes: (count * block,)."""
    gguf = import_gguf(quantization.name)
    kind = gguf.GGMLQuantizationType[quantization.name]
    blocks = data.reshape(-1, quantization.size)
    step = max(1, CHUNK // quantization.block)
    values = np.empty((len(blocks), quantization.block), np.float32)
    with np.errstate(all="ignore"):  # damaged scales give infinity, as in any other format
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            # in one row, or the package would compute 16 blocks at a time
            found = gguf.dequantize(part.reshape(1, -1), kind)
            values[start : start + step] = found.reshape(len(part), -1)
    return values.reshape(-1)
