"""Rotary position embedding over frames, rows and columns: tables and their application.

Angles are float64 on the host; only the float32 tables reach a device.
"""

from functools import lru_cache

import mlx.core as mx
import numpy as np

from wanpipe.backend import kernels
from wanpipe.backend.device import is_cuda
from wanpipe.models.layers import fused

THETA = 10000.0
Tables = tuple[mx.array, mx.array]


def pairs(width: int) -> tuple[int, int, int]:
    """Share the pairs of a head of `width` reals among frame, row and column, as WanModel does."""
    side = width // 6
    return width // 2 - 2 * side, side, side


def angles(grid: tuple[int, int, int], width: int) -> list[np.ndarray]:
    """Angles of each axis of a grid (F, H, W) in float64: (F, P), (H, P) and (W, P) for P pairs."""
    return [
        np.outer(np.arange(count), THETA ** -(np.arange(ladder) / ladder))
        for count, ladder in zip(grid, pairs(width), strict=True)
    ]


@lru_cache(maxsize=2)
def tables(grid: tuple[int, int, int], width: int) -> Tables:
    """Cosines (L, 1, D / 2, 1) and signed sines (L, 1, D / 2, 2) of a grid, shaped for `rotate`."""
    axes = angles(grid, width)
    cos = _spread([np.cos(axis) for axis in axes], grid)
    sin = _spread([np.sin(axis) for axis in axes], grid)
    return mx.array(cos), mx.array(np.concatenate([-sin, sin], axis=-1))


def _spread(parts: list[np.ndarray], grid: tuple[int, int, int]) -> np.ndarray:
    """Give every token of a grid the values (P) of its frame, row and column: (L, 1, D / 2, 1)."""
    frames, rows, columns = (part.astype(np.float32) for part in parts)
    spread = [
        np.broadcast_to(part, (*grid, part.shape[-1]))
        for part in (frames[:, None, None], rows[None, :, None], columns[None, None])
    ]
    joined = np.concatenate(spread, axis=-1)  # (F, H, W, D / 2)
    return joined.reshape(-1, 1, joined.shape[-1], 1)  # (L, 1, D / 2, 1)


@fused
def _turn(
    x: mx.array, swapped: mx.array, weight: mx.array, other: mx.array, cos: mx.array, sin: mx.array
) -> mx.array:
    return x * weight * cos + swapped * other * sin


def norm_rotate(
    x: mx.array, weight: mx.array, table: Tables, *, width: int, eps: float
) -> mx.array:
    """Normalise rows x (L, D) by their root mean square, scale by `weight` (D), and turn the heads
    of `width` by their token's angles.
    """
    if is_cuda():
        return kernels.norm_rotate(x, weight, table, width=width, eps=eps)
    heads = mx.fast.rms_norm(x, None, eps).reshape(len(x), -1, width)  # (L, N, D / N)
    return rotate(heads, weight, table).reshape(x.shape)


def rotate(x: mx.array, weight: mx.array, table: Tables) -> mx.array:
    """Scale x (L, N, D) by `weight` (N * D) and turn adjacent pairs by their token's angle.

    One pass over memory: the other half of a pair is read through a view with a negative stride,
    and the weight is that of the norm before.
    """
    tokens, heads, width = x.shape
    x = x.reshape(tokens, heads, width // 2, 2)
    weight = weight.reshape(heads, width // 2, 2)
    turned = _turn(x, x[..., ::-1], weight, weight[..., ::-1], *table, dtype=x.dtype)
    return turned.reshape(tokens, heads, width)  # (L, N, D)
