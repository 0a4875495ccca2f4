"""Reading through page-locked buffers, with ordinary memory in their place."""

import ctypes
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.models.official import converted
from wanpipe.backend import pinned
from wanpipe.backend.pinned import Span
from wanpipe.errors import CheckpointError
from wanpipe.models.dit import DiT
from wanpipe.weights import networks
from wanpipe.weights.load import Weights, load_network, read_whole
from wanpipe.weights.networks import Upcoming
from wanpipe.weights.stream import load_streamed

SMALL = 256  # bytes of a buffer
NUMBERS = np.arange(1000, dtype=np.float32)


def take_ordinary_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Take ordinary memory for buffers, and copy with NumPy."""
    held = [(ctypes.c_char * size)() for _ in range(pinned.BUFFERS)]

    def copy(address: int, span: Span) -> mx.array:
        part = (ctypes.c_char * span.nbytes).from_address(address)
        return mx.array(np.frombuffer(part, np.float32).reshape(span.shape).copy())

    monkeypatch.setattr(pinned, "BUFFER_BYTES", size)
    monkeypatch.setattr(pinned, "MIN_PIECE", 16)
    monkeypatch.setattr(pinned, "buffer", lambda number: ctypes.addressof(held[number]))
    monkeypatch.setattr(pinned, "copy", copy)


@pytest.fixture(autouse=True)
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small buffers of ordinary memory."""
    take_ordinary_memory(monkeypatch, SMALL)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of a thousand numbers."""
    path = tmp_path / "numbers"
    path.write_bytes(NUMBERS.tobytes())
    return path


def span(start: int, *shape: int) -> Span:
    """The span of numbers from `start` on."""
    return Span(offset=4 * start, shape=shape, dtype=mx.float32)


@pytest.mark.parametrize(("cuda", "locked"), [(True, [0, 1, 2]), (False, [])])
def test_buffers_are_locked_where_they_are_used(
    cuda: bool, locked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(pinned, "buffer", seen.append)
    monkeypatch.setattr(pinned, "is_cuda", lambda: cuda)
    monkeypatch.setattr(pinned.cuda_driver, "driver", lambda: object())
    pinned.lock_buffers()
    assert seen == locked


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


def test_an_array_is_there_when_it_is_given_and_reading_goes_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[mx.array] = []
    begun: list[int] = []
    evaluate, pieces = mx.eval, pinned.pieces

    def waiting(arrays: list[mx.array]) -> None:
        evaluate(arrays)
        there.extend(arrays)

    def noting(group: Sequence[Span], address: int) -> Iterator[tuple[int, int, int]]:
        begun.append(group[0].offset // 4)
        return pieces(group, address)

    monkeypatch.setattr(mx, "eval", waiting)
    monkeypatch.setattr(pinned, "pieces", noting)
    order = [300, 60, 500, 0, 360, 240]  # each fills a buffer
    for number, array in enumerate(pinned.read(file, [span(start, 60) for start in order])):
        assert any(one is array for one in there)
        assert begun == order[: number + pinned.BUFFERS + 1]


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([span(0, 4), span(4, 2), span(6, 10)], [(0, 0, 64)]),
        ([span(100, 4), span(0, 2), span(2, 4)], [(400, 0, 16), (0, 16, 24)]),
        ([span(0, 4), span(8, 4)], [(0, 0, 16), (32, 16, 16)]),
    ],
)
def test_what_follows_in_the_file_is_read_together(
    spans: list[Span], found: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "MIN_PIECE", SMALL)
    assert list(pinned.pieces(spans, 0)) == found


@pytest.mark.parametrize("spans", [[span(990, 20)], [span(0, 8), span(500, 600)]])
def test_a_file_that_ends_too_early_is_refused(file: Path, spans: list[Span]) -> None:
    with pytest.raises(CheckpointError, match="numbers ends inside a tensor"):
        list(pinned.read(file, spans))


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
