"""Reads parts of a file into arrays on a CUDA GPU, through page-locked memory of the host.

MLX reads into managed memory, whose pages the driver places one by one when the CPU first writes
them; that is several times slower than the read. Here threads read into two page-locked buffers in
turn, while the GPU copies out of the other one.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import mlx.core as mx

from wanpipe.backend import cuda_driver
from wanpipe.backend.cuda_launch import C_TYPES, launch
from wanpipe.backend.device import is_cuda
from wanpipe.errors import CheckpointError
from wanpipe.runtime import interrupt

BUFFER_BYTES = 3 << 26  # the largest matrix of a 14B model has 142 MB
ALIGNMENT = 256  # bytes
THREADS = 8
PIECE = 1 << 23  # bytes that a thread reads at once
COPY_BLOCKS, COPY_THREADS = 1056, 256  # eight blocks for each processor of an H100

# reads host memory at an address, which reaches the kernel as two halves
COPY = """
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  const size_t first = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const char* from = reinterpret_cast<const char*>(
      (unsigned long long)(unsigned)high << 32 | (unsigned)low);
  char* to = reinterpret_cast<char*>(out);
  const size_t packs = size_t(bytes) / 16;
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


def reads(spans: Sequence[Span]) -> bool:
    """Return whether `read` can bring these arrays to the device."""
    fits = (span.dtype in C_TYPES and 0 < span.nbytes <= BUFFER_BYTES for span in spans)
    return is_cuda() and cuda_driver.driver() is not None and all(fits)


def read(path: Path, spans: Sequence[Span]) -> Iterator[mx.array]:
    """Yield the arrays of a file in order; the GPU may still copy the last ones.

    Raises CheckpointError for a file that cannot be read, or ends too early.
    """
    groups = list(grouped(spans))
    copied: list[list[mx.array]] = [[], []]
    with (
        buffers() as addresses,
        path.open("rb", buffering=0) as file,
        ThreadPoolExecutor(THREADS, thread_name_prefix="read") as pool,
    ):

        def begin(number: int) -> list[Future[None]]:
            """Begin to read a group into its buffer."""
            mx.eval(copied[number % 2])  # what was in the buffer before
            jobs = pieces(groups[number], addresses[number % 2])
            return [pool.submit(fetch, file.fileno(), path, *job) for job in jobs]

        try:
            ahead = begin(0) if groups else []
            for number, group in enumerate(groups):
                interrupt.check()
                ready, ahead = ahead, begin(number + 1) if number + 1 < len(groups) else []
                for piece in ready:
                    piece.result()
                start = addresses[number % 2]
                arrays = [copy(start + place, span) for place, span in group]
                mx.async_eval(arrays)
                copied[number % 2] = arrays
                yield from arrays
        finally:
            pool.shutdown(cancel_futures=True)
            mx.eval(copied)  # before the buffers are freed


Group = list[tuple[int, Span]]  # each span with its place in a buffer


def grouped(spans: Sequence[Span]) -> Iterator[Group]:
    """Yield spans that fit into a buffer together, in order."""
    group: Group = []
    place = 0
    for span in spans:
        if group and place + span.nbytes > BUFFER_BYTES:
            yield group
            group, place = [], 0
        group.append((place, span))
        place += -(-span.nbytes // ALIGNMENT) * ALIGNMENT
    if group:
        yield group


def pieces(group: Group, address: int) -> Iterator[tuple[int, int, int]]:
    """Yield what a thread reads at once: its offset in the file, its address, and its bytes."""
    for place, span in group:
        for start in range(0, span.nbytes, PIECE):
            yield span.offset + start, address + place + start, min(PIECE, span.nbytes - start)


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
        "copy_pinned",
        COPY,
        inputs={},
        outputs={"out": (span.shape, span.dtype)},
        scalars={"low": low, "high": high, "bytes": span.nbytes},
        template={},
        blocks=min(COPY_BLOCKS, -(-span.nbytes // (16 * COPY_THREADS))),
        threads=COPY_THREADS,
    )
    return array


@contextmanager
def buffers() -> Iterator[tuple[int, int]]:
    """Give the addresses of two page-locked buffers. Raises MemoryError if there is no room."""
    with cuda_driver.pinned(BUFFER_BYTES) as first, cuda_driver.pinned(BUFFER_BYTES) as second:
        yield first, second
