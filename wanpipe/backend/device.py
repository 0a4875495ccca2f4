"""What MLX runs on here, and the dtype to compute in. Everything that asks about the backend asks
it here.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import mlx.core as mx

from wanpipe.backend import cuda_driver

# What the official code computes in float32 is so here: by default CUDA and the M5 multiply float32
# with ten bits of mantissa.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# CUDA keeps what operations read until their batch is done: by default 1000 million numbers on an
# H100, several times what is alive. Here every large operation is a batch, at no cost in time.
if mx.cuda.is_available():
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "16")

Dtype = Literal["float32", "bfloat16", "float16"]


def is_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return mx.default_device().type == mx.DeviceType.gpu


def is_cuda() -> bool:
    """Whether that GPU is NVIDIA's."""
    return is_gpu() and mx.cuda.is_available()


def is_metal() -> bool:
    """Whether that GPU is a Mac's."""
    return is_gpu() and mx.metal.is_available()


def is_unified() -> bool:
    """Whether MLX computes in the host's memory, as on a Mac and on the CPU."""
    return not is_cuda()


@cache
def architecture() -> str:
    """What NVIDIA's compiler calls the GPU: sm_90, for one."""
    return str(mx.device_info()["architecture"])


def reader() -> mx.Device | None:
    """Where MLX best reads files: on the CPU, in several threads, while a GPU computes.

    None, its default, where CUDA does not move by itself what the CPU wrote. No operation may wait
    for such an array on the GPU: CUDA's driver can keep the CPU from telling it that the array is
    there until the GPU is done. So wait for it first, then `hand_over`.
    """
    return mx.Device(mx.cpu, 0) if not is_cuda() or cuda_driver.moves_memory() else None


def hand_over(array: mx.array) -> None:
    """Bring what the CPU has read to where it is computed, behind what is under way there."""
    if is_cuda():
        cuda_driver.move_to_gpu(array)


def compute_dtype(stored: str) -> str:
    """The dtype of matrix products: the stored one on a GPU, float32 on the CPU, where bfloat16 is
    slower.
    """
    return stored if is_gpu() else "float32"


def mlx_dtype(name: str) -> mx.Dtype:
    """MLX's dtype of that name."""
    dtype = getattr(mx, name)
    assert isinstance(dtype, mx.Dtype)
    return dtype


@cache
def recommended_memory() -> int:
    """Bytes that this device recommends to use: the working set on Metal, else MLX's own limit."""
    return int(mx.device_info().get("max_recommended_working_set_size", mx.get_memory_limit()))


@contextmanager
def within(limit: int) -> Iterator[None]:
    """Let MLX wait for what is under way before it takes more than `limit` bytes."""
    before = mx.set_memory_limit(limit)
    try:
        yield
    finally:
        mx.set_memory_limit(before)


def describe() -> str:
    """The device in words, as noted in entries."""
    if not is_gpu():
        return f"cpu ({platform.processor() or platform.machine()})"
    return str(mx.device_info().get("device_name", "gpu"))


def made() -> dict[str, Any]:
    """What every entry notes of its making: versions, device, peak bytes since the last call."""
    from wanpipe.runtime.version import version

    peak = mx.get_peak_memory()
    mx.reset_peak_memory()
    return {
        "wanpipe": version(),
        "mlx": mx.__version__,  # type: ignore[attr-defined]  # not among MLX's types
        "device": describe(),
        "peak_bytes": peak,
        **({"bits_by": bits_by()} if is_cuda() else {}),
    }


def bits_by() -> dict[str, Any]:
    """What may change the bits of a result on CUDA and is in no key by policy: all stay close."""
    return {
        "tf32": os.environ["MLX_ENABLE_TF32"] != "0",
        "cudnn": _cudnn_version(),
        "grouped_keys": True,  # means beside the keys of long attention, `models.layers.evened`
    }


@cache
def _cudnn_version() -> int | None:
    """The version of the cuDNN that MLX has loaded, such as 92801; None where it has none."""
    try:
        return int(ctypes.CDLL("libcudnn.so.9").cudnnGetVersion())
    except (OSError, AttributeError):
        return None
