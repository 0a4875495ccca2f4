"""Moves memory between host and GPU, and locks memory of the host, with the CUDA driver API.

MLX reads files into managed memory, whose pages migrate when they are touched.
"""

import ctypes
from functools import cache

import mlx.core as mx

MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT in cuda.h
CONCURRENT_MANAGED_ACCESS = 89  # CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS in cuda.h
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
MIN_PREFETCH = 1 << 20  # bytes; smaller arrays are not worth a call
GPU = 0  # the device that MLX computes on


@cache
def driver() -> ctypes.CDLL | None:
    """Load the driver's library; None if it is not installed or fails to initialize."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if library.cuInit(0) else library


def attribute(number: int) -> int:
    """Return an attribute of the GPU; 0 if there is no driver, or it does not know."""
    library, answer = driver(), ctypes.c_int(0)
    if library is None or library.cuDeviceGetAttribute(ctypes.byref(answer), number, GPU):
        return 0
    return answer.value


@cache
def migrates_memory() -> bool:
    """Return whether pages migrate while CPU and GPU both work. They do not on WSL."""
    return attribute(CONCURRENT_MANAGED_ACCESS) == 1


@cache
def multiprocessors() -> int:
    """Return the number of the GPU's multiprocessors."""
    return attribute(MULTIPROCESSOR_COUNT)


def prefetch(array: mx.array) -> None:
    """Start to migrate an array that the CPU has read to the GPU, while the GPU computes.

    Without prefetching, a kernel waits for each page that it touches first, and a step with
    streamed blocks takes twice as long. Errors of the driver are ignored: pages then migrate when
    they are touched. Does nothing if memory does not migrate.
    """
    if driver() is None or not migrates_memory() or array.nbytes < MIN_PREFETCH:
        return
    # MLX's type stubs do not declare that an array is a buffer
    first = ctypes.c_char.from_buffer(array)  # type: ignore[arg-type]
    start = ctypes.c_uint64(ctypes.addressof(first))
    _entered().cuMemPrefetchAsync(start, ctypes.c_size_t(array.nbytes), GPU, _prefetches())


def lock_memory(count: int) -> int:
    """Lock so many bytes of the host's memory for the GPU, as long as this process lives, and
    return their address. Raises MemoryError if the driver refuses.
    """
    address = ctypes.c_void_p()
    failed = _entered().cuMemAllocHost_v2(ctypes.byref(address), ctypes.c_size_t(count))
    if failed or address.value is None:
        raise MemoryError(f"the CUDA driver cannot lock {count} bytes of memory")
    return address.value


def copy_to_gpu(target: int, source: int, count: int, stream: ctypes.c_void_p) -> None:
    """Begin to copy locked memory of the host to an address on the GPU.

    Raises RuntimeError if the driver fails.
    """
    places = ctypes.c_uint64(target), ctypes.c_void_p(source)
    _check_copy(_entered().cuMemcpyHtoDAsync_v2(*places, ctypes.c_size_t(count), stream))


def synchronize(stream: ctypes.c_void_p) -> None:
    """Wait until a stream's copies are done. Raises RuntimeError if one failed."""
    _check_copy(_entered().cuStreamSynchronize(stream))


def _check_copy(error: int) -> None:
    if error:
        raise RuntimeError(f"the CUDA driver cannot copy to the GPU: error {error}")


def create_stream() -> ctypes.c_void_p:
    """Return a new stream of the GPU, which waits for no other."""
    stream = ctypes.c_void_p()
    _entered().cuStreamCreate(ctypes.byref(stream), NON_BLOCKING)
    return stream


@cache
def _prefetches() -> ctypes.c_void_p:
    """Return the stream for prefetches."""
    return create_stream()


def _entered() -> ctypes.CDLL:
    """Return the library, which this thread may call at any time.

    Without the relaxed mode, calls fail while MLX records a graph of kernels in another thread.
    """
    library = driver()
    assert library is not None  # CUDA computes
    library.cuCtxSetCurrent(_context())
    library.cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(RELAXED)))
    return library


@cache
def _context() -> ctypes.c_void_p:
    """Return the GPU's primary context, which MLX uses."""
    context, library = ctypes.c_void_p(), driver()
    assert library is not None  # CUDA computes
    library.cuDevicePrimaryCtxRetain(ctypes.byref(context), GPU)
    return context
