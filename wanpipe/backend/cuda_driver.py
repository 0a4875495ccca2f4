"""What CUDA's driver is asked beside MLX: whether memory moves to where it is used, and to move it.

Memory that the CPU writes for a GPU is managed: a page moves when the other side touches it.
"""

import ctypes
from functools import cache

import mlx.core as mx

CONCURRENT_MANAGED_ACCESS = 89  # the attribute's number in the driver's cuda.h
NON_BLOCKING = 1  # a stream that does not wait for the default one
FEW = 1 << 20  # bytes that are not worth a call
GPU = 0  # the number of the device that MLX computes on


@cache
def driver() -> ctypes.CDLL | None:
    """The driver's library, if there is one."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if library.cuInit(0) else library


@cache
def moves_memory() -> bool:
    """Whether memory moves to where it is used while both sides work: not in WSL, for one."""
    library, answer = driver(), ctypes.c_int(0)
    if library is None:
        return False
    failed = library.cuDeviceGetAttribute(ctypes.byref(answer), CONCURRENT_MANAGED_ACCESS, GPU)
    return not failed and answer.value == 1


def move_to_gpu(array: mx.array) -> None:
    """Begin to move what the CPU has read to the GPU, behind what that computes.

    Without it a kernel waits for every page that it touches first: twice the time of a streamed
    step. A hint, so whatever the driver answers is right: pages then move as they are touched.
    Does nothing where memory does not move.
    """
    library = driver()
    if library is None or not moves_memory() or array.nbytes < FEW:
        return
    context, stream = _beside(library)
    library.cuCtxSetCurrent(context)
    # MLX's types do not tell that an array is a buffer
    first = ctypes.c_char.from_buffer(array)  # type: ignore[arg-type]
    start = ctypes.c_uint64(ctypes.addressof(first))
    library.cuMemPrefetchAsync(start, ctypes.c_size_t(array.nbytes), GPU, stream)


@cache
def _beside(library: ctypes.CDLL) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """The context that MLX computes in, and a stream of its own for what moves."""
    context, stream = ctypes.c_void_p(), ctypes.c_void_p()
    library.cuDevicePrimaryCtxRetain(ctypes.byref(context), GPU)
    library.cuCtxSetCurrent(context)
    library.cuStreamCreate(ctypes.byref(stream), NON_BLOCKING)
    return context, stream
