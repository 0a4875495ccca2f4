"""Matrix products, convolutions and attention on the CPU, computed by NumPy.

MLX's Linux wheel links the reference BLAS (5 GFLOP/s on two cores). NumPy's wheel has OpenBLAS, 10
to 20 times as fast. These functions evaluate their inputs immediately. They are not used on a GPU.
"""

import math

import mlx.core as mx
import numpy as np

BAND = 1 << 18  # values of unfolded windows at a time, to fit the processor's cache
ROWS, KEYS = 256, 512  # queries and keys whose scores are computed at a time
SUMMED = 64  # keys whose values are summed one by one, which loses precision


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """Compute `a @ b` in float32, and return the dtype of `a`."""
    return mx.array(np.matmul(host(a), host(b))).astype(a.dtype)


def linear(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """Multiply x (..., I) by the transpose of `weight` (O, I), and add the optional `bias`."""
    y = np.matmul(host(x), host(weight).T)
    if bias is not None:
        y += host(bias)
    return mx.array(y).astype(x.dtype)


def host(x: mx.array) -> np.ndarray:
    """Evaluate an array, and return it as a float32 NumPy array."""
    return np.asarray(x.astype(mx.float32))


def convolve(
    x: mx.array,
    weight: mx.array,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> mx.array:
    """Convolve (T, Y, X, C) with (O, *kernel, C) by im2col, one band of rows at a time.

    Windows are unfolded over frames and columns only. Unfolded rows are neighbours in memory, so
    the windows of one output row are a matrix whose rows overlap those of the next.
    """
    pixels, taps = pad(host(x), padding), host(weight)
    outputs, *kernel, C = taps.shape
    sides = zip(pixels.shape[:3], kernel, stride, strict=True)
    T, Y, X = ((n - k) // s + 1 for n, k, s in sides)
    matrix = taps.transpose(0, 2, 1, 3, 4).reshape(outputs, -1).T  # (kernel * C, O)
    frame, row, column, _ = pixels.strides
    # (T, X, all rows, frames and columns of the kernel, C)
    unfolded = np.lib.stride_tricks.as_strided(
        pixels,
        (T, X, pixels.shape[1], kernel[0], kernel[2], C),
        (frame * stride[0], column * stride[2], row, frame, *pixels.strides[2:]),
        writeable=False,
    )
    values = X * kernel[0] * kernel[2] * C  # of one unfolded row
    count = max(1, BAND // (values * stride[1]))
    total = np.empty((T, Y, X, outputs), np.float32)
    for t, y in np.ndindex(T, -(-Y // count)):
        rows = min(count, Y - y * count)
        first, needed = y * count * stride[1], (rows - 1) * stride[1] + kernel[1]
        band = unfolded[t, :, first : first + needed].copy()
        windows = np.lib.stride_tricks.as_strided(
            band,
            (rows, X, len(matrix)),
            (band.strides[1] * stride[1], band.strides[0], band.itemsize),
            writeable=False,
        )
        np.matmul(windows, matrix, out=total[t, y * count : y * count + rows])
    return mx.array(total).astype(x.dtype)


def pad(x: np.ndarray, padding: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Pad x (T, Y, X, C) with zeros. NumPy's own `pad` takes longer than a small convolution."""
    if not any(map(any, padding)):
        return np.ascontiguousarray(x)
    before, after = zip(*padding, (0, 0), strict=True)
    padded = np.zeros(np.add(x.shape, np.add(before, after)), np.float32)
    padded[tuple(slice(start, start + n) for start, n in zip(before, x.shape, strict=True))] = x
    return padded


def attend(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Attend with q, k and v (B, N, L, D), and merge the heads to (B, L, N * D).

    Scores are computed for some queries and keys at a time, with a running maximum (online
    softmax). MLX's own attention on the CPU sums key by key: with the 500 equal padding keys of a
    short prompt, its relative error is 2e-5. Here values are summed in groups of keys.
    """
    mx.eval(q, k, v)
    queries, keys, values = host(q), host(k), host(v)
    added = None if mask is None else host(mask)
    B, N, L, D = queries.shape
    merged = np.empty((B, L, N, D), np.float32)
    for b, n, r in np.ndindex(B, N, -(-L // ROWS)):
        rows = slice(r * ROWS, (r + 1) * ROWS)
        merged[b, rows, n] = _attend_rows(
            queries[b, n, rows] * np.float32(scale),
            keys[b, n],
            values[b, n],
            None if added is None else added[n, rows],
        )
    return mx.array(merged.reshape(B, L, N * D)).astype(v.dtype)


def _attend_rows(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None
) -> np.ndarray:
    """Attend with scaled queries q (R, D) to k and v (L, D); `mask` (R, L) is added."""
    maximum = np.full((len(q), 1), -math.inf, np.float32)
    total, x = np.zeros_like(maximum), np.zeros_like(q)
    for start in range(0, len(k), KEYS):
        part = slice(start, start + KEYS)
        scores = q @ k[part].T
        if mask is not None:
            scores += mask[:, part]
        before, maximum = maximum, np.maximum(maximum, scores.max(axis=-1, keepdims=True))
        scores -= maximum
        weights = np.exp(scores, out=scores)
        decay = np.exp(before - maximum)
        total = total * decay + weights.sum(axis=-1, keepdims=True)
        x *= decay
        for first in range(0, weights.shape[1], SUMMED):
            group = slice(first, first + SUMMED)
            x += weights[:, group] @ v[part][group]
    x /= total
    return x
