"""Matrix products, convolutions and SiLU on the CPU, computed by NumPy.

MLX's Linux wheel links the reference BLAS (5 GFLOP/s on two cores) and has no vectorized
exponential. NumPy's wheel has OpenBLAS, 10 to 20 times as fast, and vectorized functions. These
functions evaluate their inputs immediately. They are not used on a GPU.
"""

import mlx.core as mx
import numpy as np

BAND = 1 << 20  # values of unfolded windows at a time, to fit the processor's cache


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """Compute `a @ b` in float32, and return the dtype of `a`."""
    return mx.array(np.matmul(host(a), host(b))).astype(a.dtype)


def host(x: mx.array) -> np.ndarray:
    """Evaluate an array, and return it as a float32 NumPy array."""
    return np.asarray(x.astype(mx.float32))


def convolve(
    x: mx.array,
    weight: mx.array,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> mx.array:
    """Convolve (T, Y, X, C) with (O, *kernel, C) by im2col, one band of rows at a time."""
    pixels, taps = host(mx.pad(x, [*padding, (0, 0)])), host(weight)
    outputs, *kernel, C = taps.shape
    sides = zip(pixels.shape[:3], kernel, stride, strict=True)
    T, Y, X = ((n - k) // s + 1 for n, k, s in sides)
    steps = [n * s for n, s in zip(pixels.strides[:3], stride, strict=True)]
    shape, strides = (T, Y, X, *kernel, C), (*steps, *pixels.strides)
    windows = np.lib.stride_tricks.as_strided(pixels, shape, strides, writeable=False)
    matrix = taps.reshape(outputs, -1).T  # (kernel * C, O)
    total = np.empty((T, Y, X, outputs), np.float32)
    rows = max(1, BAND // (X * len(matrix)))
    for t, y in np.ndindex(T, -(-Y // rows)):
        band = windows[t, y * rows : (y + 1) * rows].reshape(-1, len(matrix))  # a copy
        np.matmul(band, matrix, out=total[t, y * rows : (y + 1) * rows].reshape(-1, outputs))
    return mx.array(total).astype(x.dtype)


def silu(x: mx.array) -> mx.array:
    """Compute x * sigmoid(x)."""
    values = host(x)
    with np.errstate(over="ignore"):  # far below zero the quotient is zero
        denominator = np.exp(-values)
        denominator += 1
    return mx.array(np.divide(values, denominator, out=denominator)).astype(x.dtype)
