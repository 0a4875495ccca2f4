"""Matrix products on the CPU, through the BLAS that NumPy carries.

MLX's Linux wheel links the reference BLAS (5 GFLOP/s on two cores); NumPy's wheel brings OpenBLAS,
ten to twenty times as fast. The products are evaluated at once. GPU backends never come here.
"""

import mlx.core as mx
import numpy as np


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """Multiply as `a @ b` does; the result has the dtype of `a`."""
    return mx.array(np.matmul(host(a), host(b))).astype(a.dtype)


def host(x: mx.array) -> np.ndarray:
    """View an array's values in NumPy, as float32."""
    return np.asarray(x.astype(mx.float32))


def sum_of_taps(x: mx.array, weight: mx.array, stride: tuple[int, ...]) -> mx.array:
    """Convolve (T, Y, X, C), already padded, with (O, *K, C): one product per tap of the kernel.

    Needs no copy of the input but one window of it, where a convolution by unfolding takes K.
    """
    pixels, taps = host(x), host(weight)
    kernel = taps.shape[1:4]
    sizes = zip(pixels.shape[:3], kernel, stride, strict=True)
    counts = tuple((n - k) // s + 1 for n, k, s in sizes)
    total = np.zeros((int(np.prod(counts)), taps.shape[0]), dtype=np.float32)
    for tap in np.ndindex(*kernel):
        ends = zip(tap, counts, stride, strict=True)
        window = pixels[tuple(slice(start, start + (n - 1) * s + 1, s) for start, n, s in ends)]
        total += window.reshape(-1, pixels.shape[3]) @ taps[:, *tap].T
    return mx.array(total.reshape(*counts, -1)).astype(x.dtype)
