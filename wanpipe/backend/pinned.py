"""Reads parts of a file into arrays on a CUDA GPU, through page-locked memory of the host.

MLX reads into managed memory, whose pages the driver places one by one when the CPU first writes
them; that takes several times as long as the read. Here threads read into page-locked buffers in
turn, while the GPU's copy engine empties others. What the GPU computes meanwhile does not wait.
"""

import ctypes
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import mlx.core as mx

from wanpipe.backend import cuda_driver
from wanpipe.backend.cuda_launch import C_TYPES, Kernel, launch
from wanpipe.backend.device import is_cuda
from wanpipe.errors import CheckpointError

BUFFER_BYTES = 1 << 26
BUFFERS = 3  # one that is read into, one that waits, and one that is copied from
THREADS = min(16, os.cpu_count() or 1)
MIN_SHARE = 1 << 20  # bytes that a thread reads at once
GROUP_ARRAYS = 512  # of a buffer at most, so that their addresses fit into a page

# stores the address of an array on the GPU in the host's memory, at an address in two halves
TELL_ADDRESS = Kernel(
    "tell_address",
    """
  unsigned long long* to = reinterpret_cast<unsigned long long*>(
      (unsigned long long)(unsigned)high << 32 | (unsigned)low);
  *to = reinterpret_cast<unsigned long long>(out);
""",
)


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


@dataclass(frozen=True)
class Piece:
    """Bytes of the file at an offset, and the address that they belong to."""

    offset: int
    address: int
    nbytes: int

    def split(self, size: int) -> tuple["Piece", "Piece"]:
        """Return the first bytes, up to `size`, and the rest."""
        size = min(size, self.nbytes)
        rest = Piece(self.offset + size, self.address + size, self.nbytes - size)
        return Piece(self.offset, self.address, size), rest


@dataclass(frozen=True)
class Buffer:
    """Page-locked memory, and the stream of the GPU that copies from it."""

    address: int
    stream: ctypes.c_void_p


@dataclass(frozen=True)
class Portion:
    """Pieces of arrays that fill a buffer, and whether the arrays are complete with them."""

    arrays: list[mx.array]
    pieces: list[Piece]
    last: bool


@dataclass(frozen=True)
class Load:
    """A buffer, the jobs that read into it, and what it is for.

    It holds the arrays, whose memory is theirs until everything is copied.
    """

    buffer: Buffer
    jobs: list[Future[None]]
    portion: Portion

    def copy(self) -> None:
        """Begin to copy what is read to the GPU. Raises CheckpointError if it cannot be read."""
        for job in self.jobs:
            job.result()
        stream = self.buffer.stream
        for piece, place in placed(self.portion.pieces, self.buffer.address):
            cuda_driver.copy_to_gpu(piece.address, place, piece.nbytes, stream)

    def arrive(self) -> list[mx.array]:
        """Wait until everything is copied, and return the arrays that are then complete."""
        cuda_driver.synchronize(self.buffer.stream)
        return self.portion.arrays if self.portion.last else []

    def stop(self) -> None:
        """Wait until nothing uses the buffer and the arrays any more."""
        for job in self.jobs:
            job.cancel()
        wait(self.jobs)
        cuda_driver.synchronize(self.buffer.stream)


def reads(spans: Iterable[Span]) -> bool:
    """Return whether `read` can bring these arrays to the device."""
    fits = (span.dtype in C_TYPES and span.nbytes > 0 for span in spans)
    return is_cuda() and cuda_driver.driver() is not None and all(fits)


def read(path: Path, spans: Sequence[Span]) -> Generator[mx.array, None, None]:
    """Yield the arrays of spans of a file, each when it is there, so that any thread may use it.

    The next ones are being read meanwhile. One file is read at a time. Raises CheckpointError for a
    file that cannot be read, or ends too early.
    """
    loads: deque[Load] = deque()  # the newest is not copied yet
    with path.open("rb", buffering=0) as file:
        try:
            for number, portion in enumerate(portions(spans)):
                if len(loads) == BUFFERS:
                    yield from loads.popleft().arrive()
                buffer = buffers()[number % BUFFERS]
                jobs = [
                    pool().submit(fetch, file.fileno(), path, share)
                    for share in shares(portion.pieces, buffer.address)
                ]
                loads.append(Load(buffer, jobs, portion))
                if len(loads) > 1:
                    loads[-2].copy()
            if loads:
                loads[-1].copy()
            while loads:
                yield from loads.popleft().arrive()
        finally:
            for load in loads:
                load.stop()


def portions(spans: Iterable[Span]) -> Iterator[Portion]:
    """Yield what fills a buffer, in order, and allocate arrays for it."""
    for group in grouped(spans):
        arrays, addresses = allocate(group)
        pieces = [
            Piece(span.offset, address, span.nbytes)
            for span, address in zip(group, addresses, strict=True)
        ]
        *before, last = split(pieces, BUFFER_BYTES)
        for some in before:
            yield Portion(arrays, some, last=False)
        yield Portion(arrays, last, last=True)


def grouped(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Yield spans that fit into a buffer together, in order; one that is larger comes alone."""
    group: list[Span] = []
    count = 0
    for span in spans:
        if group and (count + span.nbytes > BUFFER_BYTES or len(group) == GROUP_ARRAYS):
            yield group
            group, count = [], 0
        group.append(span)
        count += span.nbytes
    if group:
        yield group


def placed(pieces: Iterable[Piece], address: int) -> Iterator[tuple[Piece, int]]:
    """Yield pieces with their places one after another in a buffer at an address."""
    for piece in pieces:
        yield piece, address
        address += piece.nbytes


def shares(pieces: Sequence[Piece], address: int) -> Iterator[list[Piece]]:
    """Yield what each thread reads of the pieces into a buffer at an address."""
    total = sum(piece.nbytes for piece in pieces)
    read = (Piece(piece.offset, at, piece.nbytes) for piece, at in placed(pieces, address))
    return split(read, max(MIN_SHARE, -(-total // THREADS)))


def split(pieces: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    """Yield parts of `size` bytes each, and of fewer at last."""
    part: list[Piece] = []
    room = size
    for piece in pieces:
        rest = piece
        while rest.nbytes:
            first, rest = rest.split(room)
            part.append(first)
            room -= first.nbytes
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part


def fetch(file: int, path: Path, share: Sequence[Piece]) -> None:
    """Read pieces of a file to their addresses."""
    for piece in share:
        fill(file, path, piece)


def fill(file: int, path: Path, piece: Piece) -> None:
    """Read bytes of a file to an address."""
    view = memoryview((ctypes.c_char * piece.nbytes).from_address(piece.address)).cast("B")
    done = 0
    while done < piece.nbytes:
        try:
            received = os.preadv(file, [view[done:]], piece.offset + done)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if not received:
            raise CheckpointError(f"{path} ends inside a tensor; convert the checkpoint again")
        done += received


def allocate(spans: Sequence[Span]) -> tuple[list[mx.array], list[int]]:
    """Return arrays of any numbers on the GPU, and their addresses."""
    slots = (ctypes.c_uint64 * len(spans)).from_address(page())
    arrays = []
    for number, span in enumerate(spans):
        place = ctypes.addressof(slots) + number * ctypes.sizeof(ctypes.c_uint64)
        low, high = (ctypes.c_int32(half).value for half in (place & 0xFFFFFFFF, place >> 32))
        arrays += launch(
            TELL_ADDRESS,
            inputs={},
            outputs={"out": (span.shape, span.dtype)},
            scalars={"low": low, "high": high},
            template={},
            blocks=1,
            threads=1,
        )
    mx.eval(arrays)
    return arrays, list(slots)


def lock_buffers() -> None:
    """Lock the memory that files are read into, if they are read this way on this device."""
    if reads([]):
        page()
        buffers()


@cache
def pool() -> ThreadPoolExecutor:
    """Return the threads that read."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="read")


@cache
def page() -> int:
    """Return the address of locked memory that the GPU stores addresses of arrays in."""
    return cuda_driver.lock_memory(GROUP_ARRAYS * ctypes.sizeof(ctypes.c_uint64))


@cache
def buffers() -> list[Buffer]:
    """Return the buffers, which stay as long as the process. Raises MemoryError without room.

    Locking takes as long as reading 20 times as much.
    """
    start = cuda_driver.lock_memory(BUFFERS * BUFFER_BYTES)
    places = (start + number * BUFFER_BYTES for number in range(BUFFERS))
    return [Buffer(place, cuda_driver.create_stream()) for place in places]
