"""Reads tensors of checkpoint files lazily: safetensors, torch's zip format and GGUF, one file or
shards.

Numbers are read when asked for, in blocks: memory stays bounded by what the caller keeps. BF16 is
given as uint16 bit patterns (NumPy has no such format), 8-bit floats as uint8; the `float32`
variants give values. Quantized tensors of GGUF are float32 tensors to the caller. The libraries
read headers; the bytes are read here, because the slices of safetensors refuse those formats and
map the file, whose pages then count as memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from wanpipe.checkpoints import gguf_file, torch_file
from wanpipe.checkpoints.dtypes import FLOATS, NUMPY_DTYPES, Array, Floats, widen
from wanpipe.checkpoints.tensors import (
    MAX_AXES,
    MAX_AXIS_LENGTH,
    TensorInfo,
    TensorLocation,
    check_names,
    quote_name,
)
from wanpipe.errors import CheckpointError

HEADER_LIMIT = 1 << 24  # bytes; the header of a quantized 14B model has 500 kB
BLOCK = 1 << 22  # bytes per block: large enough to stream, small enough for the cache of a core
GGUF_SUFFIX = ".gguf"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


class TensorFile(AbstractContextManager["TensorFile"]):
    """Tensors of one file or of several shards, open for reading; a context manager."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._files: list[BinaryIO] = []
        self._locations: dict[str, TensorLocation] = {}
        self.metadata: dict[str, str] = {}
        tensors: dict[str, TensorInfo] = {}
        with ExitStack() as stack:
            stack.callback(self.close)
            for path in self.paths:
                self._open(path, tensors)
            stack.pop_all()
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    def _open(self, path: Path, tensors: dict[str, TensorInfo]) -> None:
        index = len(self._files)
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; give the path of a checkpoint file")
        try:
            file = path.open("rb", buffering=0)
            self._files.append(file)
            if path.suffix.lower() == GGUF_SUFFIX:
                found, metadata = gguf_file.list_tensors(path)
                self.metadata.update(metadata)
            elif path.suffix in TORCH_SUFFIXES:
                found = torch_file.list_tensors(file, path)
            else:
                found, metadata = list_safetensors(file, path)
                self.metadata.update(metadata)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        for name, (info, location) in found.items():
            if name in tensors:
                raise CheckpointError(
                    f"{path} holds {quote_name(name)}, which another shard holds too"
                )
            tensors[name] = info
            self._locations[name] = replace(location, file=index)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        for file in self._files:
            file.close()

    def stored_type(self, name: str) -> str:
        """Name the format in which a tensor is stored: "F32", "BF16", "Q4_K", ..."""
        info, location = self._find(name)
        return location.quantization.name if location.quantization else info.dtype

    def offset(self, name: str) -> int:
        """Return where the numbers of a tensor begin in its file."""
        return self._find(name)[1].offset

    def read(self, name: str) -> Array:
        """Read a tensor whole, as stored."""
        info, location = self._find(name)
        if location.strides is not None:
            return np.ascontiguousarray(self._strided(name))
        return self._part(name, 0, prod(info.shape)).reshape(info.shape)

    def read_float32(self, name: str) -> Floats:
        """Read a tensor whole, as float32 values."""
        return widen(
            self.read(name), self.tensors[name].dtype, f"{self._path(name)}: {quote_name(name)}"
        )

    def read_number(self, name: str) -> float:
        """Read a tensor that holds one finite number, whatever its format."""
        info, subject = self.tensors[name], f"{self._path(name)}: {quote_name(name)}"
        if prod(info.shape) != 1:
            raise CheckpointError(f"{subject} must be one number, got shape {info.shape}")
        values = self.read(name)
        values = widen(values, info.dtype, subject) if info.dtype in FLOATS else values
        number = float(values.reshape(-1)[0])
        if not np.isfinite(number):
            raise CheckpointError(f"{subject} must be finite, got {number}")
        return number

    def rows(self, name: str, indices: Sequence[int]) -> Array:
        """Read only the given rows of a 2-D tensor (R, D): (len(indices), D) as stored."""
        info, location = self._find(name)
        if len(info.shape) != 2:
            raise CheckpointError(
                f"{self._path(name)}: {quote_name(name)} must be 2-D, is {info.shape}"
            )
        height, width = info.shape
        beyond = [index for index in indices if not 0 <= index < height]
        if beyond:
            raise CheckpointError(
                f"{self._path(name)}: {quote_name(name)} has rows 0 to {height - 1}, "
                f"asked for {beyond[0]}"
            )
        if location.strides is not None:
            return np.ascontiguousarray(self._strided(name)[list(indices)])
        result = np.empty((len(indices), width), NUMPY_DTYPES[info.dtype])
        for row, index in zip(result, indices, strict=True):
            row[:] = self._part(name, int(index) * width, width)
        return result

    def rows_float32(self, name: str, indices: Sequence[int]) -> Floats:
        """Read only the given rows of a 2-D tensor, as float32 values."""
        values = self.rows(name, indices)
        return widen(values, self.tensors[name].dtype, f"{self._path(name)}: {quote_name(name)}")

    def blocks(self, name: str, limit: int = BLOCK) -> Iterator[Array]:
        """Read a tensor in turn, as stored: slices of its first axis, each up to `limit` bytes."""
        info, location = self._find(name)
        if not info.shape or not info.nbytes:
            yield self.read(name)
            return
        row = info.nbytes // info.shape[0]
        step = max(1, limit // row)
        for start in range(0, info.shape[0], step):
            count = min(step, info.shape[0] - start)
            if location.strides is not None:
                yield np.ascontiguousarray(self._strided(name)[start : start + count])
                continue
            numbers = prod(info.shape[1:])
            values = self._part(name, start * numbers, count * numbers)
            yield values.reshape(count, *info.shape[1:])

    def _find(self, name: str) -> tuple[TensorInfo, TensorLocation]:
        if name not in self.tensors:
            raise CheckpointError(f"{self.paths[0]} holds no tensor {quote_name(name)}")
        return self.tensors[name], self._locations[name]

    def _path(self, name: str) -> Path:
        return self.paths[self._locations[name].file]

    def _part(self, name: str, start: int, count: int) -> Array:
        """Read `count` numbers of a contiguous tensor from number `start` on."""
        info, location = self.tensors[name], self._locations[name]
        kind = location.quantization
        if kind is None:
            offset = location.offset + start * NUMPY_DTYPES[info.dtype].itemsize
            return self._numbers(location.file, offset, info.dtype, count)
        first, end = start // kind.block, -(-(start + count) // kind.block)
        data = self._numbers(
            location.file, location.offset + first * kind.size, "U8", (end - first) * kind.size
        )
        values = gguf_file.dequantize(data, kind)
        return values[start - first * kind.block :][:count]

    def _numbers(self, index: int, offset: int, dtype: str, count: int) -> Array:
        values = np.empty(count, NUMPY_DTYPES[dtype])
        view = values.view(np.uint8).data
        file = self._files[index]
        done = 0
        try:
            file.seek(offset)
            while done < len(view):  # one read gives 2 GiB at most
                received = file.readinto(view[done:])  # type: ignore[attr-defined]
                if not received:
                    raise CheckpointError(
                        f"{self.paths[index]} ends inside a tensor; download it again"
                    )
                done += received
        except OSError as error:
            raise CheckpointError(
                f"{self.paths[index]} cannot be read: {error.strerror}"
            ) from error
        return values

    def _strided(self, name: str) -> Array:
        """View a tensor with gaps or another order in place, through a mapping of the file."""
        info, location = self._find(name)
        assert location.strides is not None
        stored = NUMPY_DTYPES[info.dtype]
        spans = zip(info.shape, location.strides, strict=True)
        count = 1 + sum((length - 1) * stride for length, stride in spans)
        flat = np.memmap(
            self.paths[location.file],
            mode="r",
            dtype=np.uint8,
            offset=location.offset,
            shape=(count * stored.itemsize,),
        )
        strides = tuple(stride * stored.itemsize for stride in location.strides)
        return np.lib.stride_tricks.as_strided(flat.view(stored), info.shape, strides)


def open_tensors(path: Path | Sequence[Path]) -> TensorFile:
    """Open a safetensors, .pth or GGUF file, or all shards of one network, for lazy reading.

    Raises CheckpointError for a file that is missing, truncated, malformed or hostile.
    """
    return TensorFile([path] if isinstance(path, Path) else path)


def list_safetensors(
    file: BinaryIO, path: Path
) -> tuple[dict[str, tuple[TensorInfo, TensorLocation]], dict[str, str]]:
    """Read a safetensors header: what and where each tensor is, and the metadata.

    The library checks that the tensors follow each other without gap or overlap to the file's end.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if HEADER_LIMIT < length <= size:
        raise CheckpointError(f"{path} has a header of {length} bytes, more than {HEADER_LIMIT}")
    infos: dict[str, TensorInfo] = {}
    try:
        with safe_open(path, framework="numpy") as header:
            names = header.offset_keys()
            check_names(names, path)
            for name in names:
                entry = header.get_slice(name)
                infos[name] = _info(
                    f"{path}: {quote_name(name)}", entry.get_dtype(), entry.get_shape()
                )
            metadata = header.metadata() or {}
    except SafetensorError as error:
        reason = quote_name(str(error).removeprefix("Error while deserializing header: "))
        raise CheckpointError(
            f"{path} is no safetensors file, damaged or cut short ({reason}); download it again"
        ) from error
    found, offset = {}, size - sum(info.nbytes for info in infos.values())
    for name, info in infos.items():
        found[name] = info, TensorLocation(0, offset)
        offset += info.nbytes
    return found, metadata


def _info(subject: str, dtype: str, shape: Sequence[int]) -> TensorInfo:
    """Describe a tensor. Raises CheckpointError for formats and shapes that NumPy cannot hold."""
    if dtype not in NUMPY_DTYPES:
        raise CheckpointError(f"{subject} has the unknown dtype {dtype}; use F32, F16 or BF16")
    if len(shape) > MAX_AXES or max(shape, default=0) >= MAX_AXIS_LENGTH:
        raise CheckpointError(f"{subject} has a shape of {len(shape)} axes that no network has")
    return TensorInfo(tuple(shape), dtype, prod(shape) * NUMPY_DTYPES[dtype].itemsize)
