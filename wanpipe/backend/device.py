"""The device that MLX computes on: its kind, dtype and memory, and the provenance of results."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx

from wanpipe.backend import cuda_driver

# float32 products keep full precision, as in the official code. By default, CUDA and the M5 use
# TF32, with 10 bits of mantissa
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# CUDA keeps the inputs of operations until their batch is done: on an H100 up to 1000 million
# values by default, several times the live arrays. This limit makes each large operation a batch,
# and costs no time
if mx.cuda.is_available():
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "16")


def is_gpu() -> bool:
    """Return whether MLX's default device is a GPU (Metal or CUDA)."""
    return mx.default_device().type == mx.DeviceType.gpu


def is_cuda() -> bool:
    """Return whether the default device is a CUDA GPU."""
    return is_gpu() and mx.cuda.is_available()


def is_metal() -> bool:
    """Return whether the default device is a Metal GPU."""
    return is_gpu() and mx.metal.is_available()


def is_unified() -> bool:
    """Return whether MLX computes in the host's memory, as on a Mac and on the CPU."""
    return not is_cuda()


@cache
def architecture() -> str:
    """Return the compute architecture of the GPU, such as sm_90."""
    return str(mx.device_info()["architecture"])


def load_device() -> mx.Device | None:
    """Return the device for reading files: the CPU, which reads while a GPU computes.

    Returns None, MLX's default, if CUDA cannot migrate memory that the CPU wrote. Evaluate the
    array before any GPU operation depends on it: the driver may delay the CPU's completion event
    until the GPU is idle, which would deadlock the stream. Then call `prefetch_to_gpu`.
    """
    return mx.Device(mx.cpu, 0) if not is_cuda() or cuda_driver.migrates_memory() else None


def prefetch_to_gpu(array: mx.array) -> None:
    """Start to move an array that the CPU has read to the GPU, while the GPU computes."""
    if is_cuda():
        cuda_driver.prefetch(array)


def is_exact() -> bool:
    """Return whether WANPIPE_EXACT turns off what is faster but approximate: padded keys.

    It is off if it is unset, empty or 0.
    """
    return os.environ.get("WANPIPE_EXACT", "") not in ("", "0")


def compute_dtype(stored: str) -> str:
    """Return the dtype of matrix products: `stored` on a GPU, float32 on the CPU.

    bfloat16 is slower on the CPU.
    """
    return stored if is_gpu() else "float32"


def mlx_dtype(name: str) -> mx.Dtype:
    """Return MLX's dtype called `name`."""
    dtype = getattr(mx, name)
    assert isinstance(dtype, mx.Dtype)
    return dtype


@cache
def recommended_memory() -> int:
    """Return the bytes that this device recommends to use.

    This is the recommended working set on Metal, else MLX's default limit.
    """
    return int(mx.device_info().get("max_recommended_working_set_size", mx.get_memory_limit()))


class _Limit:
    """The limit of MLX's memory: that of a plan, or MLX's own, and what is reserved beside it."""

    own: int | None = None  # of MLX, before it was changed
    plan: int | None = None
    reserved = 0


@contextmanager
def memory_limit(limit: int) -> Iterator[None]:
    """Make MLX wait for pending work before an allocation beyond `limit` bytes."""
    before, _Limit.plan = _Limit.plan, limit
    _set_limit()
    try:
        yield
    finally:
        _Limit.plan = before
        _set_limit()


def reserve(count: int) -> None:
    """Allow `count` bytes beside those of a plan, for a network that is read ahead."""
    _Limit.reserved = count
    _set_limit()


def _set_limit() -> None:
    """Set MLX's limit."""
    if _Limit.own is None:
        _Limit.own = mx.get_memory_limit()
    mx.set_memory_limit((_Limit.own if _Limit.plan is None else _Limit.plan) + _Limit.reserved)


def describe() -> str:
    """Return the name of the device, as recorded in entries."""
    if not is_gpu():
        return f"cpu ({platform.processor() or platform.machine()})"
    return str(mx.device_info().get("device_name", "gpu"))


def provenance(devices: int = 1) -> dict[str, Any]:
    """Return versions, device, how many there are if not one, and the peak bytes of this one since
    the last call, as recorded in every entry.
    """
    from wanpipe.runtime.version import version

    peak = mx.get_peak_memory()
    mx.reset_peak_memory()
    return {
        "wanpipe": version(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]  # missing in MLX's type stubs
        "device": describe(),
        **({"devices": devices} if devices > 1 else {}),
        "peak_bytes": peak,
        **({"bits_by": numerics()} if is_cuda() else {}),
    }


def numerics() -> dict[str, Any]:
    """Return what may change the bits of a result on CUDA without changing its key."""
    return {
        "tf32": os.environ["MLX_ENABLE_TF32"] != "0",
        "cudnn": _cudnn_version(),
        "grouped_keys": not is_exact(),  # long attention has padded keys: `layers.pad_keys`
    }


@cache
def _cudnn_version() -> int | None:
    """Return the version of the cuDNN that MLX has loaded, such as 92801, or None."""
    try:
        return int(ctypes.CDLL("libcudnn.so.9").cudnnGetVersion())
    except (OSError, AttributeError):
        return None
