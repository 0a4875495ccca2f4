"""Starts CUDA in a thread, while a command is planned. Loads no array library.

MLX uses the driver's primary context, which takes 0.3 s to make. Without a driver nothing happens.
"""

import ctypes
import os
import sys
from importlib.util import find_spec
from threading import Thread

GPU = 0  # the device that MLX computes on


def begin() -> None:
    """Begin to make the context of the GPU and to load MLX's library, if there is a driver."""
    if sys.platform == "linux":
        Thread(target=start, name="cuda", daemon=True).start()


def start() -> bool:
    """Make the context of the GPU and load MLX's library; return whether there is a driver.

    Python's lock is free meanwhile. Whatever fails here, fails again where MLX needs it.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    context = ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), GPU):
        return False
    found = find_spec("mlx.core")
    if found is not None and found.origin is not None:
        load = ctypes.CDLL(None).dlopen
        load.restype = ctypes.c_void_p
        load(found.origin.encode(), os.RTLD_NOW)
    return True
