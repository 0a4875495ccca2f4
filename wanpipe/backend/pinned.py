"""Reads parts of a file into arrays on a CUDA GPU, through page-locked memory of the host.

MLX reads into managed memory, whose pages the driver places one by one when the CPU first writes
them; that takes several times as long as the read. Here threads read into page-locked buffers in
turn, while the GPU copies out of others.
"""

import ctypes
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, islice
from math import prod
from pathlib import Path

import mlx.core as mx

from wanpipe.backend import cuda_driver
from wanpipe.backend.cuda_launch import C_TYPES, Kernel, launch
from wanpipe.backend.device import is_cuda
from wanpipe.errors import CheckpointError

BUFFER_BYTES = 9 << 24  # the largest matrix of a 14B model has 142 MB
BUFFERS = 3  # one that is read into, one that waits, and one that is copied from
THREADS = min(16, os.cpu_count() or 1)
MIN_PIECE = 1 << 20  # bytes that a thread reads at once
COPY_BLOCKS, COPY_THREADS = 64, 256  # more would take a GPU's time from what it computes

# reads host memory at an address, which reaches the kernel as two halves
COPY = """
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  const size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const char* from = reinterpret_cast<const char*>(
      (unsigned long long)(unsigned)high << 32 | (unsigned)low);
  char* to = reinterpret_cast<char*>(out);
  const size_t packs = (low & 15) ? 0 : size_t(bytes) / 16;
  for (size_t at = first; at < packs; at += stride)
    store<float, 4>(reinterpret_cast<float*>(to + 16 * at),
        load<float, 4>(reinterpret_cast<const float*>(from + 16 * at)));
  for (size_t at = 16 * packs + first; at < bytes; at += stride) to[at] = from[at];
"""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where the numbers of an array lie in a file, as they are on the GPU."""

    offset: int
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * self.dtype.size


def reads(spans: Iterable[Span]) -> bool:
    """Return whether `read` can bring these arrays to the device."""
    fits = (span.dtype in C_TYPES and span.nbytes > 0 for span in spans)
    return is_cuda() and cuda_driver.driver() is not None and all(fits)


def read(path: Path, spans: Sequence[Span]) -> Iterator[mx.array]:
    """Yield the arrays of spans of a file, each when it is there, so that any thread may use it.

    It is fastest where spans follow each other in the file. One file is read at a time. Raises
    CheckpointError for a file that cannot be read, or ends too early.
    """
    split = [list(parts(span)) for span in spans]
    with closing(read_parts(path, [part for some in split for part in some])) as arrays:
        for some in split:
            found = list(islice(arrays, len(some)))
            if len(found) == 1:
                yield found[0]
            else:
                joined = mx.concatenate(found)
                mx.eval(joined)  # else the parts would stay until it is used
                yield joined


def parts(span: Span) -> Iterator[Span]:
    """Yield parts of a span, rows of its first axis, that each fit into a buffer."""
    if span.nbytes <= BUFFER_BYTES:
        yield span
        return
    row = span.nbytes // span.shape[0]
    count = max(1, BUFFER_BYTES // row)
    for first in range(0, span.shape[0], count):
        rows = min(count, span.shape[0] - first)
        yield replace(span, offset=span.offset + first * row, shape=(rows, *span.shape[1:]))


def read_parts(path: Path, spans: Sequence[Span]) -> Generator[mx.array, None, None]:
    """Yield the arrays of spans that each fit into a buffer, as `read` does."""
    groups = list(grouped(spans))
    arrays: list[mx.array] = []  # of a group, which the GPU copies
    reading: deque[list[Future[None]]] = deque()
    with (
        path.open("rb", buffering=0) as file,
        ThreadPoolExecutor(THREADS, thread_name_prefix="read") as pool,
    ):
        try:
            for number in range(1 - BUFFERS, len(groups) + 1):
                mx.eval(arrays)
                if (ahead := number + BUFFERS - 1) < len(groups):
                    jobs = pieces(groups[ahead], buffer(ahead % BUFFERS))
                    reading.append([pool.submit(fetch, file.fileno(), path, *job) for job in jobs])
                yield from arrays
                arrays = []
                if 0 <= number < len(groups):
                    for piece in reading.popleft():
                        piece.result()
                    group, start = groups[number], buffer(number % BUFFERS)
                    places = accumulate((span.nbytes for span in group), initial=start)
                    arrays = [copy(place, span) for place, span in zip(places, group, strict=False)]
                    mx.async_eval(arrays)
        finally:
            pool.shutdown(cancel_futures=True)
            mx.eval(arrays)  # before the buffers are used again


def grouped(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Yield spans that fit into a buffer together, in order."""
    group: list[Span] = []
    count = 0
    for span in spans:
        if group and count + span.nbytes > BUFFER_BYTES:
            yield group
            group, count = [], 0
        group.append(span)
        count += span.nbytes
    if group:
        yield group


def pieces(group: Sequence[Span], address: int) -> Iterator[tuple[int, int, int]]:
    """Yield what each thread reads of a group: its offset in the file, its address, its bytes."""
    size = max(MIN_PIECE, -(-sum(span.nbytes for span in group) // THREADS))
    for first, count in consecutive(group):
        for start in range(0, count, size):
            yield first + start, address + start, min(size, count - start)
        address += count


def consecutive(group: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """Yield the parts of the file that the spans of a group fill: offset and bytes."""
    first = end = group[0].offset
    for span in group:
        if span.offset != end:
            yield first, end - first
            first = span.offset
        end = span.offset + span.nbytes
    yield first, end - first


def fetch(file: int, path: Path, offset: int, address: int, count: int) -> None:
    """Read bytes of a file to an address."""
    view = memoryview((ctypes.c_char * count).from_address(address)).cast("B")
    done = 0
    while done < count:
        try:
            received = os.preadv(file, [view[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if not received:
            raise CheckpointError(f"{path} ends inside a tensor; convert the checkpoint again")
        done += received


def copy(address: int, span: Span) -> mx.array:
    """Return an array that the GPU copies from page-locked memory."""
    low, high = (ctypes.c_int32(part).value for part in (address & 0xFFFFFFFF, address >> 32))
    [array] = launch(
        Kernel("copy_pinned", COPY),
        inputs={},
        outputs={"out": (span.shape, span.dtype)},
        scalars={"low": low, "high": high, "bytes": span.nbytes},
        template={},
        blocks=min(COPY_BLOCKS, -(-span.nbytes // (16 * COPY_THREADS))),
        threads=COPY_THREADS,
    )
    return array


def lock_buffers() -> None:
    """Lock all buffers, if arrays are read through them on this device."""
    if reads([]):
        for number in range(BUFFERS):
            buffer(number)


@cache
def buffer(number: int) -> int:
    """Return the address of a buffer, which is locked once. Raises MemoryError if there is no room.

    Locking takes as long as reading 20 times as much.
    """
    return cuda_driver.lock_memory(BUFFER_BYTES)
