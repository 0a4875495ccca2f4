"""Reading through page-locked buffers, with ordinary memory in place of locked and the GPU's."""

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.models.official import converted
from wanpipe.backend import cuda_driver, pinned
from wanpipe.backend.cuda_launch import Kernel
from wanpipe.backend.pinned import Piece, Span
from wanpipe.errors import CheckpointError
from wanpipe.models.dit import DiT
from wanpipe.weights import networks
from wanpipe.weights.load import Weights, load_network, read_whole
from wanpipe.weights.networks import Upcoming
from wanpipe.weights.stream import load_streamed

SMALL = 256  # bytes of a buffer
NUMBERS = np.arange(1000, dtype=np.float32)


def tell_address(
    _: Kernel,
    outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
    scalars: Mapping[str, int],
    **__: object,
) -> list[mx.array]:
    """Return an array of other numbers, and store its address as the kernel does."""
    shape, dtype = outputs["out"]
    array = mx.full(shape, 7, dtype)
    mx.eval(array)
    place = (scalars["high"] & 0xFFFFFFFF) << 32 | scalars["low"] & 0xFFFFFFFF
    # MLX's type stubs do not declare that an array is a buffer
    first = ctypes.c_char.from_buffer(array)  # type: ignore[arg-type]
    ctypes.c_uint64.from_address(place).value = ctypes.addressof(first)
    return [array]


def take_ordinary_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> list[Any]:
    """Take ordinary memory for locked memory and the GPU's, and return what gets locked."""
    held: list[Any] = []

    def lock(count: int) -> int:
        held.append((ctypes.c_char * count)())
        return ctypes.addressof(held[-1])

    def copy(target: int, source: int, count: int, _: ctypes.c_void_p) -> None:
        ctypes.memmove(target, source, count)

    monkeypatch.setattr(pinned, "BUFFER_BYTES", size)
    monkeypatch.setattr(pinned, "MIN_SHARE", 16)
    monkeypatch.setattr(pinned, "launch", tell_address)
    monkeypatch.setattr(pinned, "page", cache(pinned.page.__wrapped__))
    monkeypatch.setattr(pinned, "buffers", cache(pinned.buffers.__wrapped__))
    monkeypatch.setattr(cuda_driver, "lock_memory", lock)
    monkeypatch.setattr(cuda_driver, "create_stream", ctypes.c_void_p)
    monkeypatch.setattr(cuda_driver, "copy_to_gpu", copy)
    monkeypatch.setattr(cuda_driver, "synchronize", lambda _: None)
    return held


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Have small buffers of ordinary memory; return what is locked."""
    return take_ordinary_memory(monkeypatch, SMALL)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of a thousand numbers."""
    path = tmp_path / "numbers"
    path.write_bytes(NUMBERS.tobytes())
    return path


def span(start: int, *shape: int) -> Span:
    """The span of numbers from `start` on."""
    return Span(offset=4 * start, shape=shape, dtype=mx.float32)


@pytest.mark.parametrize(("cuda", "locked"), [(True, [512 * 8, 3 * SMALL]), (False, [])])
def test_buffers_are_locked_where_they_are_used(
    cuda: bool, locked: list[int], held: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "is_cuda", lambda: cuda)
    monkeypatch.setattr(cuda_driver, "driver", lambda: object())
    for _ in range(2):
        pinned.lock_buffers()
    assert [len(memory) for memory in held] == locked


@pytest.mark.parametrize(
    "spans",
    [
        [],
        [span(0, 3)],
        [span(0, 60), span(60, 4), span(64, 64), span(128, 1)],
        [span(number, 1) for number in range(0, 1000, 7)],
        [span(10, 5), span(900, 5)],  # far apart
        [span(500, 20), span(0, 40), span(40, 3), span(520, 8), span(7, 3)],  # in another order
        [span(0, 10, 30), span(300, 7), span(307, 99, 7)],  # larger than a buffer
    ],
)
def test_arrays_are_those_of_the_file(file: Path, spans: list[Span]) -> None:
    found = list(pinned.read(file, spans))
    assert len(found) == len(spans)
    for one, array in zip(spans, found, strict=True):
        first, count = one.offset // 4, one.nbytes // 4
        np.testing.assert_array_equal(array, NUMBERS[first : first + count].reshape(one.shape))


def test_the_next_buffers_are_read_into_when_an_array_is_given(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    shares = pinned.shares

    def noting(pieces: Sequence[Piece], address: int) -> Iterator[list[Piece]]:
        begun.extend(piece.offset // 4 for piece in pieces)
        return shares(pieces, address)

    monkeypatch.setattr(pinned, "shares", noting)
    order = [300, 60, 500, 0, 360, 240]  # each fills a buffer
    for number, array in enumerate(pinned.read(file, [span(start, 60) for start in order])):
        np.testing.assert_array_equal(array, NUMBERS[order[number] : order[number] + 60])
        assert begun == order[: number + pinned.BUFFERS]


def test_a_buffer_is_filled_again_only_when_it_is_copied(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[ctypes.c_void_p] = []
    done: list[str] = []
    copy, shares = cuda_driver.copy_to_gpu, pinned.shares

    def stream() -> ctypes.c_void_p:
        streams.append(ctypes.c_void_p(len(streams)))
        return streams[-1]

    def noting_copy(target: int, source: int, count: int, stream: ctypes.c_void_p) -> None:
        done.append(f"copy {stream.value or 0}")
        copy(target, source, count, stream)

    def noting_shares(pieces: Sequence[Piece], address: int) -> Iterator[list[Piece]]:
        numbers = [buffer.address for buffer in pinned.buffers()]
        done.append(f"fill {numbers.index(address)}")
        return shares(pieces, address)

    monkeypatch.setattr(cuda_driver, "create_stream", stream)
    monkeypatch.setattr(cuda_driver, "copy_to_gpu", noting_copy)
    monkeypatch.setattr(
        cuda_driver, "synchronize", lambda stream: done.append(f"done {stream.value or 0}")
    )
    monkeypatch.setattr(pinned, "shares", noting_shares)
    list(pinned.read(file, [span(start, 60) for start in (0, 60, 120, 180)]))
    assert done == [
        *("fill 0", "fill 1", "copy 0", "fill 2", "copy 1"),
        *("done 0", "fill 0", "copy 2", "copy 0"),
        *("done 1", "done 2", "done 0"),
    ]


def test_threads_read_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "THREADS", 4)
    pieces = [Piece(0, 7, 50), Piece(500, 7, 10), Piece(50, 7, 60)]
    assert list(pinned.shares(pieces, 1000)) == [
        [Piece(0, 1000, 30)],
        [Piece(30, 1030, 20), Piece(500, 1050, 10)],
        [Piece(50, 1060, 30)],
        [Piece(80, 1090, 30)],
    ]


def test_a_few_numbers_are_read_by_one_thread() -> None:
    assert list(pinned.shares([Piece(0, 7, 4), Piece(500, 7, 12)], 1000)) == [
        [Piece(0, 1000, 4), Piece(500, 1004, 12)]
    ]


def test_addresses_of_many_arrays_fit_into_the_page(file: Path) -> None:
    count = pinned.GROUP_ARRAYS + 1
    spans = [
        Span(offset=4 * (number % 1000), shape=(1,), dtype=mx.float32) for number in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pinned, "BUFFER_BYTES", 1 << 20)
        assert [len(group) for group in pinned.grouped(spans)] == [pinned.GROUP_ARRAYS, 1]
        found = [array.item() for array in pinned.read(file, spans)]
    assert found == [number % 1000 for number in range(count)]


@pytest.mark.parametrize("spans", [[span(990, 20)], [span(0, 8), span(500, 600)]])
def test_a_file_that_ends_too_early_is_refused(file: Path, spans: list[Span]) -> None:
    with pytest.raises(CheckpointError, match="numbers ends inside a tensor"):
        list(pinned.read(file, spans))


def test_a_file_that_cannot_be_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CheckpointError, match="numbers cannot be read: Input/output error"):
        list(pinned.read(file, [span(0, 8)]))


def test_reading_can_end_early(file: Path) -> None:
    arrays = pinned.read(file, [span(number, 50) for number in range(0, 1000, 50)])
    np.testing.assert_array_equal(next(arrays), NUMBERS[:50])
    del arrays
    np.testing.assert_array_equal(next(pinned.read(file, [span(7, 3)])), NUMBERS[7:10])


def test_nothing_is_read_this_way_without_cuda() -> None:
    assert not pinned.reads([span(0, 3)])


@pytest.mark.parametrize("size", [1 << 12, 1 << 16, 1 << 22])  # of a row, a block, everything
@pytest.mark.parametrize("family", ["wan21-t2v", "wan21-vace"])
def test_a_network_reads_the_same_numbers_through_buffers(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, family: str, size: int
) -> None:
    directory, config = converted(checkpoints, family)
    path = directory / "model.safetensors"
    exact = load_network(DiT(config.dit), path, mx.float32)
    take_ordinary_memory(monkeypatch, size)
    monkeypatch.setattr(pinned, "reads", lambda spans: True)
    monkeypatch.setattr(Weights, "through_mlx", None)
    read = partial(read_whole, path, mx.float32, config.dit.block_names)
    with networks.scheduled([Upcoming(path=path, bytes=1, read=read)]):
        network = load_streamed(DiT(config.dit), path, mx.float32, stay=True)
        for block, name in zip(network.blocks, config.dit.block_names, strict=True):
            row, number = name.split(".")
            expected = dict(tree_flatten(exact[row][int(number)].parameters()))
            for one, array in tree_flatten(block.parameters()):
                assert mx.array_equal(array, expected[one]), (name, one)
    for one, array in tree_flatten(network.parameters()):
        assert mx.array_equal(array, dict(tree_flatten(exact.parameters()))[one]), one
