"""Device queries and calls of the CUDA driver, with a fake driver instead of a GPU."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import pytest

from wanpipe.backend import cuda_driver, device


class Driver:
    """A fake CUDA driver that reports `migrates`, and records what it prefetches."""

    def __init__(self, migrates: int = 1, failed: int = 0, absent: int = 0) -> None:
        self.migrates, self.failed, self.absent = migrates, failed, absent
        self.prefetched: list[tuple[int, int, int]] = []
        self.copied: list[tuple[int | None, ...]] = []
        self.streams = 0

    def cuInit(self, flags: int) -> int:
        return self.absent

    def cuDeviceGetAttribute(self, answer: ctypes.c_int, attribute: int, number: int) -> int:
        assert (attribute, number) == (89, 0)
        answer._obj.value = self.migrates
        return self.failed

    def cuDevicePrimaryCtxRetain(self, context: object, number: int) -> int:
        return 0

    def cuCtxSetCurrent(self, context: object) -> int:
        return 0

    def cuThreadExchangeStreamCaptureMode(self, mode: ctypes.c_int) -> int:
        assert mode._obj.value == 2
        return 0

    def cuMemcpyHtoDAsync_v2(self, *given: Any) -> int:
        self.copied.append(tuple(one.value for one in given))
        return self.failed

    def cuStreamSynchronize(self, stream: ctypes.c_void_p) -> int:
        return self.failed

    def cuStreamCreate(self, stream: object, flags: int) -> int:
        self.streams += 1
        return 0

    def cuMemPrefetchAsync(
        self, start: ctypes.c_uint64, size: ctypes.c_size_t, number: int, stream: object
    ) -> int:
        self.prefetched.append((start.value, size.value, number))
        return 1  # errors are ignored


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Driver | None], None]]:
    """Replace the driver of this machine by a fake one, or by none."""

    def use(library: Driver | None) -> None:
        def load(name: str) -> Driver:
            assert name == "libcuda.so.1"
            if library is None:
                raise OSError(name)
            return library

        monkeypatch.setattr(device, "is_cuda", lambda: True)
        monkeypatch.setattr(cuda_driver.ctypes, "CDLL", load)
        clear()

    def clear() -> None:
        for cached in (
            cuda_driver.driver,
            cuda_driver.migrates_memory,
            cuda_driver._context,
            cuda_driver._prefetches,
        ):
            cached.cache_clear()

    yield use
    monkeypatch.undo()
    clear()


Install = Callable[[Driver | None], None]
CPU = mx.Device(mx.cpu, 0)


def test_the_cpu_reads_files_for_itself_and_for_metal() -> None:
    assert device.load_device() == CPU


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (Driver(), CPU),
        (Driver(migrates=0), None),
        (Driver(failed=1), None),
        (Driver(absent=100), None),
        (None, None),
    ],
)
def test_the_cpu_reads_files_for_cuda_if_memory_migrates(
    install: Install, library: Driver | None, expected: mx.Device | None
) -> None:
    install(library)
    assert device.load_device() == expected


def test_arrays_are_prefetched_from_their_address(install: Install) -> None:
    library = Driver()
    install(library)
    arrays = [mx.arange(count, dtype=mx.int32) for count in (1 << 20, 1 << 18, 1000)]
    mx.eval(arrays)
    for array in arrays:
        device.prefetch_to_gpu(array)
    assert [size for _, size, _ in library.prefetched] == [4 << 20, 1 << 20]  # not the small one
    for (start, size, number), array in zip(library.prefetched, arrays, strict=False):
        assert number == 0
        assert ctypes.string_at(start, size) == bytes(memoryview(array))
    assert library.streams == 1


@pytest.mark.parametrize("library", [Driver(migrates=0), None])
def test_nothing_is_prefetched_if_memory_does_not_migrate(
    install: Install, library: Driver | None
) -> None:
    install(library)
    device.prefetch_to_gpu(mx.zeros(1 << 20))
    assert library is None or library.prefetched == []


def test_without_cuda_the_driver_is_not_called(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Driver()
    install(library)
    monkeypatch.setattr(device, "is_cuda", lambda: False)
    device.prefetch_to_gpu(mx.zeros(1 << 20))
    assert library.prefetched == []


def test_memory_is_copied_to_an_address(install: Install) -> None:
    library = Driver()
    install(library)
    stream = cuda_driver.create_stream()
    cuda_driver.copy_to_gpu(1 << 45, 1 << 40, 1000, stream)
    cuda_driver.synchronize(stream)
    assert library.copied == [(1 << 45, 1 << 40, 1000, None)]


def test_a_copy_that_fails_is_an_error(install: Install) -> None:
    install(Driver(failed=700))
    stream = cuda_driver.create_stream()
    with pytest.raises(RuntimeError, match="cannot copy to the GPU: error 700"):
        cuda_driver.copy_to_gpu(1 << 45, 1 << 40, 1000, stream)
    with pytest.raises(RuntimeError, match="cannot copy to the GPU: error 700"):
        cuda_driver.synchronize(stream)


@pytest.mark.parametrize("setting", [None, "", "0", "1"])
def test_an_entry_says_whether_keys_are_padded(
    setting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_cuda", lambda: True)
    if setting is None:
        monkeypatch.delenv("WANPIPE_EXACT", raising=False)
    else:
        monkeypatch.setenv("WANPIPE_EXACT", setting)
    assert device.provenance()["bits_by"]["grouped_keys"] is (setting != "1")
