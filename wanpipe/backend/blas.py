"""Matrix products, convolutions and SiLU on the CPU, through NumPy.

MLX's Linux wheel links the reference BLAS (5 GFLOP/s on two cores) and takes exponentials one by
one; NumPy's wheel brings OpenBLAS, ten to twenty times as fast, and vectors. All is evaluated at
once. GPU backends never come here.
"""

import mlx.core as mx
import numpy as np

BAND = 1 << 20  # values of unfolded windows at a time: what the processor's cache holds


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """Multiply as `a @ b` does; the result has the dtype of `a`."""
    return mx.array(np.matmul(host(a), host(b))).astype(a.dtype)


def host(x: mx.array) -> np.ndarray:
    """View an array's values in NumPy, as float32."""
    return np.asarray(x.astype(mx.float32))


def convolve(
    x: mx.array,
    weight: mx.array,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> mx.array:
    """Convolve (T, Y, X, C) with (O, *K, C): windows side by side, a band of rows at a time."""
    pixels, taps = host(mx.pad(x, [*padding, (0, 0)])), host(weight)
    outputs, *kernel, C = taps.shape
    sides = zip(pixels.shape[:3], kernel, stride, strict=True)
    T, Y, X = ((n - k) // s + 1 for n, k, s in sides)
    steps = [n * s for n, s in zip(pixels.strides[:3], stride, strict=True)]
    shape, strides = (T, Y, X, *kernel, C), (*steps, *pixels.strides)
    windows = np.lib.stride_tricks.as_strided(pixels, shape, strides, writeable=False)
    matrix = taps.reshape(outputs, -1).T  # (K*C, O)
    total = np.empty((T, Y, X, outputs), np.float32)
    rows = max(1, BAND // (X * len(matrix)))
    for t, y in np.ndindex(T, -(-Y // rows)):
        band = windows[t, y * rows : (y + 1) * rows].reshape(-1, len(matrix))  # a copy
        np.matmul(band, matrix, out=total[t, y * rows : (y + 1) * rows].reshape(-1, outputs))
    return mx.array(total).astype(x.dtype)


def silu(x: mx.array) -> mx.array:
    """Apply x * sigmoid(x)."""
    values = host(x)
    with np.errstate(over="ignore"):  # far below zero the quotient is zero
        below = np.exp(-values)
        below += 1
    return mx.array(np.divide(values, below, out=below)).astype(x.dtype)
