"""Rotary position embedding (RoPE) over frames, rows and columns.

Angles are computed in float64 on the host; the device gets float32 tables.
Source: wan/modules/model.py, `rope_params` and `rope_apply`.
"""

from functools import lru_cache

import mlx.core as mx
import numpy as np

from wanpipe.backend import cpu_kernels, cuda_kernels
from wanpipe.backend.device import is_cuda, is_metal
from wanpipe.models.layers import fused

THETA = 10000.0
Tables = tuple[mx.array, mx.array]


def pairs(width: int) -> tuple[int, int, int]:
    """Return how many pairs of a head of `width` each axis rotates, as in `WanModel`."""
    side = width // 6
    return width // 2 - 2 * side, side, side


def angles(grid: tuple[int, int, int], width: int) -> list[np.ndarray]:
    """Return the float64 angles (positions, pairs) of each axis of a grid (F, H, W)."""
    return [
        np.outer(np.arange(count), THETA ** -(np.arange(share) / share))
        for count, share in zip(grid, pairs(width), strict=True)
    ]


@lru_cache(maxsize=2)
def tables(grid: tuple[int, int, int], width: int) -> Tables:
    """Return cosines (L, 1, D / 2, 1) and signed sines (L, 1, D / 2, 2) for `rotate`."""
    axes = angles(grid, width)
    cos = _broadcast([np.cos(axis) for axis in axes], grid)
    sin = _broadcast([np.sin(axis) for axis in axes], grid)
    return mx.array(cos), mx.array(np.concatenate([-sin, sin], axis=-1))


def _broadcast(axes: list[np.ndarray], grid: tuple[int, int, int]) -> np.ndarray:
    """Concatenate for each token the values of its frame, row and column: (L, 1, D / 2, 1)."""
    frames, rows, columns = (axis.astype(np.float32) for axis in axes)
    parts = [
        np.broadcast_to(part, (*grid, part.shape[-1]))
        for part in (frames[:, None, None], rows[None, :, None], columns[None, None])
    ]
    joined = np.concatenate(parts, axis=-1)  # (F, H, W, D / 2)
    return joined.reshape(-1, 1, joined.shape[-1], 1)  # (L, 1, D / 2, 1)


@fused
def _rotate(
    x: mx.array, swapped: mx.array, weight: mx.array, other: mx.array, cos: mx.array, sin: mx.array
) -> mx.array:
    return x * weight * cos + swapped * other * sin


def norm_rotate(
    x: mx.array, weight: mx.array, table: Tables, *, width: int, eps: float
) -> mx.array:
    """Apply RMSNorm with `weight` (D) to rows x (L, D), then rotate the heads of `width`."""
    if not is_metal():
        kernel = cuda_kernels.norm_rotate if is_cuda() else cpu_kernels.norm_rotate
        return kernel(x, weight, table, width=width, eps=eps)
    heads = mx.fast.rms_norm(x, None, eps).reshape(len(x), -1, width)  # (L, N, D / N)
    return rotate(heads, weight, table).reshape(x.shape)


def rotate(x: mx.array, weight: mx.array, table: Tables) -> mx.array:
    """Scale x (L, N, D) by `weight` (N * D), and rotate adjacent pairs by the token's angles.

    `weight` is that of the preceding norm; applying it here saves a pass over memory.
    The other value of a pair is read through a view with a negative stride.
    """
    L, N, D = x.shape
    x = x.reshape(L, N, D // 2, 2)
    weight = weight.reshape(N, D // 2, 2)
    rotated = _rotate(x, x[..., ::-1], weight, weight[..., ::-1], *table, dtype=x.dtype)
    return rotated.reshape(L, N, D)  # (L, N, D)
