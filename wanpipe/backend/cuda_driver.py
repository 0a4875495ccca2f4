"""Prefetches managed memory to the GPU, and locks memory of the host, with the CUDA driver API.

MLX allocates managed memory: a page migrates when the CPU or the GPU touches it.
"""

import ctypes
from functools import cache

import mlx.core as mx

MULTIPROCESSOR_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT in cuda.h
CONCURRENT_MANAGED_ACCESS = 89  # CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS in cuda.h
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
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
    library = driver()
    if library is None or not migrates_memory() or array.nbytes < MIN_PREFETCH:
        return
    context, stream = _context_and_stream(library)
    library.cuCtxSetCurrent(context)
    # MLX's type stubs do not declare that an array is a buffer
    first = ctypes.c_char.from_buffer(array)  # type: ignore[arg-type]
    start = ctypes.c_uint64(ctypes.addressof(first))
    library.cuMemPrefetchAsync(start, ctypes.c_size_t(array.nbytes), GPU, stream)


def lock_memory(count: int) -> int:
    """Lock so many bytes of the host's memory for the GPU, as long as this process lives, and
    return their address. Raises MemoryError if the driver refuses.
    """
    library = driver()
    assert library is not None  # CUDA computes
    library.cuCtxSetCurrent(_context_and_stream(library)[0])
    address = ctypes.c_void_p()
    failed = library.cuMemAllocHost_v2(ctypes.byref(address), ctypes.c_size_t(count))
    if failed or address.value is None:
        raise MemoryError(f"the CUDA driver cannot lock {count} bytes of memory")
    return address.value


@cache
def _context_and_stream(library: ctypes.CDLL) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """Return the primary context, which MLX uses, and a separate stream for prefetches."""
    context, stream = ctypes.c_void_p(), ctypes.c_void_p()
    library.cuDevicePrimaryCtxRetain(ctypes.byref(context), GPU)
    library.cuCtxSetCurrent(context)
    library.cuStreamCreate(ctypes.byref(stream), NON_BLOCKING)
    return context, stream
