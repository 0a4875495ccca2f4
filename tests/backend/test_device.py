"""What the device and CUDA's driver are asked, as far as a machine without a GPU can tell."""

import ctypes
from collections.abc import Callable, Iterator

import mlx.core as mx
import pytest

from wanpipe.backend import cuda_driver, device


class Driver:
    """CUDA's driver, which answers `moves` to the question it is asked, and remembers what it is to
    move.
    """

    def __init__(self, moves: int = 1, failed: int = 0, absent: int = 0) -> None:
        self.moves, self.failed, self.absent = moves, failed, absent
        self.moved: list[tuple[int, int, int]] = []
        self.streams = 0

    def cuInit(self, flags: int) -> int:
        return self.absent

    def cuDeviceGetAttribute(self, answer: ctypes.c_int, attribute: int, number: int) -> int:
        assert (attribute, number) == (89, 0)
        answer._obj.value = self.moves
        return self.failed

    def cuDevicePrimaryCtxRetain(self, context: object, number: int) -> int:
        return 0

    def cuCtxSetCurrent(self, context: object) -> int:
        return 0

    def cuStreamCreate(self, stream: object, flags: int) -> int:
        self.streams += 1
        return 0

    def cuMemPrefetchAsync(
        self, start: ctypes.c_uint64, size: ctypes.c_size_t, number: int, stream: object
    ) -> int:
        self.moved.append((start.value, size.value, number))
        return 1  # a refusal stops nothing


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Driver | None], None]]:
    """Put a driver, or none, in the place of what is on this machine."""

    def use(library: Driver | None) -> None:
        def load(name: str) -> Driver:
            assert name == "libcuda.so.1"
            if library is None:
                raise OSError(name)
            return library

        monkeypatch.setattr(device, "is_cuda", lambda: True)
        monkeypatch.setattr(cuda_driver.ctypes, "CDLL", load)
        forget()

    def forget() -> None:
        for asked in (cuda_driver.driver, cuda_driver.moves_memory, cuda_driver._beside):
            asked.cache_clear()

    yield use
    monkeypatch.undo()
    forget()


Install = Callable[[Driver | None], None]
CPU = mx.Device(mx.cpu, 0)


def test_the_cpu_reads_files_for_itself_and_for_metal() -> None:
    assert device.reader() == CPU


@pytest.mark.parametrize(
    ("library", "reads"),
    [
        (Driver(), CPU),
        (Driver(moves=0), None),
        (Driver(failed=1), None),
        (Driver(absent=100), None),
        (None, None),
    ],
)
def test_the_cpu_reads_files_for_cuda_where_memory_moves(
    install: Install, library: Driver | None, reads: mx.Device | None
) -> None:
    install(library)
    assert device.reader() == reads


def test_what_was_read_is_moved_from_its_place_in_memory(install: Install) -> None:
    library = Driver()
    install(library)
    arrays = [mx.arange(count, dtype=mx.int32) for count in (1 << 20, 1 << 18, 1000)]
    mx.eval(arrays)
    for array in arrays:
        device.hand_over(array)
    assert [size for _, size, _ in library.moved] == [4 << 20, 1 << 20]  # not the little one
    for (start, size, number), array in zip(library.moved, arrays, strict=False):
        assert number == 0
        assert ctypes.string_at(start, size) == bytes(memoryview(array))
    assert library.streams == 1


@pytest.mark.parametrize("library", [Driver(moves=0), None])
def test_nothing_is_moved_where_memory_does_not(install: Install, library: Driver | None) -> None:
    install(library)
    device.hand_over(mx.zeros(1 << 20))
    assert library is None or library.moved == []


def test_without_cuda_the_driver_is_not_asked(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Driver()
    install(library)
    monkeypatch.setattr(device, "is_cuda", lambda: False)
    device.hand_over(mx.zeros(1 << 20))
    assert library.moved == []
