"""What the device is asked, as far as a machine without a GPU can tell."""

import ctypes
from collections.abc import Iterator

import mlx.core as mx
import pytest

from wanpipe import device


class Driver:
    """CUDA's driver, which answers `moves` to the one question it is asked."""

    def __init__(self, moves: int, failed: int) -> None:
        self.moves, self.failed = moves, failed

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetAttribute(self, answer: ctypes.c_int, attribute: int, number: int) -> int:
        assert (attribute, number) == (89, 0)
        answer._obj.value = self.moves
        return self.failed


@pytest.fixture
def unasked() -> Iterator[None]:
    device.moves_memory.cache_clear()
    yield
    device.moves_memory.cache_clear()


def test_the_cpu_reads_files_for_itself_and_for_metal() -> None:
    assert device.reader() == mx.Device(mx.cpu, 0)


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(("moves", "failed", "reads"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_the_cpu_reads_files_for_cuda_where_memory_moves(
    monkeypatch: pytest.MonkeyPatch, moves: int, failed: int, reads: bool
) -> None:
    monkeypatch.setattr(device, "is_cuda", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(moves, failed))
    assert device.reader() == (mx.Device(mx.cpu, 0) if reads else None)


@pytest.mark.usefixtures("unasked")
def test_without_a_driver_memory_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not device.moves_memory()
