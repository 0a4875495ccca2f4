"""Elementwise functions on the CPU, computed by NumPy in float32.

MLX's Linux wheel computes exponentials and hyperbolic tangents value by value; NumPy's are
vectorized, 20 to 30 times as fast. These functions evaluate their inputs immediately. They are not
used on a GPU.
"""

import math

import mlx.core as mx
import numpy as np

from wanpipe.backend.blas import host


def sum_terms(*terms: mx.array) -> mx.array:
    """Add arrays, and return the dtype of the first one."""
    mx.eval(*terms)
    first, second, *rest = (host(term) for term in terms)
    total = first + second
    for term in rest:
        total += term
    return mx.array(total).astype(terms[0].dtype)


def rms_norm_silu(x: mx.array, gamma: mx.array, eps: float, silu: bool) -> mx.array:
    """Apply RMSNorm with `gamma` over the last axis of x (..., C), and SiLU after it if `silu`."""
    rows = host(x).reshape(-1, x.shape[-1])
    y = rows / _root_mean_square(rows, eps)
    y *= host(gamma)
    if silu:
        with np.errstate(over="ignore"):  # far below zero the quotient is zero
            denominator = np.negative(y)
            np.exp(denominator, out=denominator)
            denominator += 1
        y /= denominator
    return mx.array(y.reshape(x.shape)).astype(x.dtype)


def gelu(x: mx.array) -> mx.array:
    """Compute the tanh form of GELU."""
    values = host(x)
    y = np.square(values)
    y *= np.float32(0.044715)
    y += 1
    y *= values
    y *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(y, out=y)
    y += 1
    y *= values
    y *= np.float32(0.5)
    return mx.array(y).astype(x.dtype)


def norm_modulate(
    x: mx.array, shift: mx.array, scale: mx.array, *, eps: float, dtype: mx.Dtype
) -> mx.array:
    """Normalize x (G, L / G, D), multiply by one plus `scale` (G, 1, D), and add `shift`."""
    mx.eval(x, shift, scale)
    return mx.array(_layer_norm(host(x), host(shift), 1 + host(scale), eps)).astype(dtype)


def add_norm(
    x: mx.array,
    parts: list[mx.array],
    gate: mx.array | None,
    shift: mx.array,
    scale: mx.array,
    *,
    plus_one: bool,
    eps: float,
    dtype: mx.Dtype,
) -> tuple[mx.array, mx.array]:
    """Compute x + gate * concat(parts), and return it and its norm (see `layers.add_norm`)."""
    mx.eval(x, *parts, shift, scale, *([] if gate is None else [gate]))
    y = host(parts[0]) if len(parts) == 1 else np.concatenate([host(part) for part in parts])
    y = y.reshape(x.shape)
    total = host(x) + y if gate is None else y * host(gate)
    if gate is not None:
        total += host(x)
    weight = host(scale) + 1 if plus_one else host(scale)
    normed = _layer_norm(total, host(shift), weight, eps)
    return mx.array(total), mx.array(normed).astype(dtype)


def _layer_norm(x: np.ndarray, shift: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    y: np.ndarray = x - _mean(x)
    y /= _root_mean_square(y, eps)
    y *= weight
    y += shift
    return y


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """Divide x (..., D) by the root of the mean square of its last axis, and scale by `weight`."""
    return mx.array(_rms_norm(host(x), weight, eps)).astype(x.dtype)


def norm_rotate(
    x: mx.array, weight: mx.array, table: tuple[mx.array, mx.array], *, width: int, eps: float
) -> mx.array:
    """Apply RMSNorm with `weight` to rows x (L, D), then rotate heads as `rope.rotate` does.

    A pair of values is a complex number, which its angle turns.
    """
    cos, sin = (host(part) for part in table)
    turns = cos[..., 0] + np.complex64(1j) * sin[..., 1]  # (L, 1, D / N / 2)
    y = _rms_norm(host(x), weight, eps).view(np.complex64).reshape(len(x), -1, width // 2)
    y *= turns
    return mx.array(y.view(np.float32).reshape(x.shape)).astype(x.dtype)


def _rms_norm(x: np.ndarray, weight: mx.array | None, eps: float) -> np.ndarray:
    y: np.ndarray = x / _root_mean_square(x, eps)
    if weight is not None:
        y *= host(weight)
    return y


def _root_mean_square(x: np.ndarray, eps: float) -> np.ndarray:
    mean = _mean(np.square(x))
    mean += np.float32(eps)
    root: np.ndarray = np.sqrt(mean, out=mean)
    return root


def _mean(x: np.ndarray) -> np.ndarray:
    """Return the mean of the last axis (..., 1) as a product: NumPy adds short rows slowly."""
    width = x.shape[-1]
    mean: np.ndarray = x @ np.full((width, 1), 1 / width, np.float32)
    return mean
