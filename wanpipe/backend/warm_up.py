"""Has a CUDA GPU load the libraries that it computes with, which takes 0.3 s in every process."""

import mlx.core as mx

from wanpipe.backend.device import is_cuda


def warm_up() -> None:
    """Run a small product, attention and convolution in this thread. Does nothing without CUDA."""
    if not is_cuda():
        return
    matrix = mx.ones((256, 256), mx.bfloat16)
    heads = mx.ones((1, 2, 256, 128), mx.bfloat16)
    pixels = mx.ones((1, 3, 16, 16, 96), mx.bfloat16)
    kernel = mx.ones((96, 3, 3, 3, 96), mx.bfloat16)
    mx.eval(
        matrix @ matrix,
        mx.fast.scaled_dot_product_attention(heads, heads, heads, scale=1.0),
        mx.conv_general(pixels, kernel, padding=1),
    )
