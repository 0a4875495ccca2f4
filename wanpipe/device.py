"""What MLX runs on here, and the dtype to compute in. Everything that asks about the backend asks
it here.
"""

import platform
from typing import Any, Literal

import mlx.core as mx

Dtype = Literal["float32", "bfloat16", "float16"]


def is_gpu() -> bool:
    """Whether MLX computes on a GPU (Metal or CUDA) by default."""
    return mx.default_device().type == mx.DeviceType.gpu


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


def describe() -> str:
    """The device in words, as noted in entries."""
    if not is_gpu():
        return f"cpu ({platform.processor() or platform.machine()})"
    return str(mx.device_info().get("device_name", "gpu"))


def made() -> dict[str, Any]:
    """What every entry notes of its making: versions, device, peak bytes since the last call."""
    import wanpipe

    peak = mx.get_peak_memory()
    mx.reset_peak_memory()
    return {
        "wanpipe": wanpipe.__version__,
        "mlx": mx.__version__,
        "device": describe(),
        "peak_bytes": peak,
    }
