"""Rotary position embedding over frames, rows and columns: tables and their application.

Angles are float64 on the host; only the float32 tables reach a device.
"""

from functools import lru_cache

import mlx.core as mx
import numpy as np

from wanpipe.models.layers import fused

THETA = 10000.0
Tables = tuple[mx.array, mx.array]


def pairs(width: int) -> tuple[int, int, int]:
    """Share the pairs of a head of `width` reals among frame, row and column, as WanModel does."""
    side = width // 6
    return width // 2 - 2 * side, side, side


def angles(grid: tuple[int, int, int], width: int) -> np.ndarray:
    """Angles (L, D / 2) in float64 of the tokens of a grid (F, H, W), each axis with its ladder."""
    parts = []
    for axis, (count, ladder) in enumerate(zip(grid, pairs(width), strict=True)):
        table = np.outer(np.arange(count), THETA ** -(np.arange(ladder) / ladder))
        shape = [1, 1, 1, ladder]
        shape[axis] = count
        parts.append(np.broadcast_to(table.reshape(shape), (*grid, ladder)))
    return np.concatenate(parts, axis=-1).reshape(-1, width // 2)  # (L, D / 2)


@lru_cache(maxsize=2)
def tables(grid: tuple[int, int, int], width: int) -> Tables:
    """Cosines (L, 1, D / 2, 1) and signed sines (L, 1, D / 2, 2) of a grid, shaped for `rotate`."""
    phase = angles(grid, width)[:, None, :, None]
    signed = np.sin(phase) * np.array([-1.0, 1.0])
    return mx.array(np.cos(phase).astype(np.float32)), mx.array(signed.astype(np.float32))


@fused
def _turn(
    x: mx.array, swapped: mx.array, weight: mx.array, other: mx.array, cos: mx.array, sin: mx.array
) -> mx.array:
    return x * weight * cos + swapped * other * sin


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
