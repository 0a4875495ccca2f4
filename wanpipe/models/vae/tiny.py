"""The decoder of TAEHV, the tiny autoencoder for video: fast, with less detail than the VAE.

It decodes the normalized latent itself, without mean and deviation, one latent frame at a time.
Each block sees its input at the frame before, so memory is bounded, whatever the length.
Source: `TAEHV` in taehv.py of github.com/madebyollin/taehv (MIT license).
"""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn

from wanpipe.models.config import TINY_BLOCKS, TINY_GROWTH, TinyVAEConfig
from wanpipe.models.layers import matmul
from wanpipe.models.vae.blocks import polyphase_kernels
from wanpipe.models.vae.causal_conv import SAME, CausalCache, Conv, DerivedWeight, convolve

LEAD = 3  # frames that are decoded before the first one of the video


def relu(x: mx.array) -> mx.array:
    """Replace negative values by zero."""
    return mx.maximum(x, 0)


def conv(inputs: int, outputs: int) -> Conv:
    """Return a 3x3 convolution that keeps the size."""
    return Conv(inputs, outputs, (3, 3), (1, 1), SAME)


class MemoryBlock(nn.Module):
    """Three convolutions of each frame and the frame before it, and a shortcut (`MemBlock`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = conv(2 * width, width)
        self.conv2 = conv(width, width)
        self.conv3 = conv(width, width)

    def __call__(self, x: mx.array, cache: CausalCache) -> mx.array:
        before = cache.concat(x, 1)[:-1]  # the first frame of a video sees zeros
        y = relu(self.conv1(mx.concatenate([x, before], -1)))
        return relu(self.conv3(relu(self.conv2(y))) + x)


class Grow(nn.Module):
    """Double rows and columns, make `frames` of each frame, and change the number of channels.

    The reference repeats pixels, multiplies them by `matrix` (`TGrow`), whose rows are those of one
    frame after another, and convolves with `kernel`. Nothing between them is nonlinear, so this is
    one convolution of the small image with `polyphase_kernels`.
    """

    def __init__(self, inputs: int, outputs: int, frames: int) -> None:
        super().__init__()
        self.matrix = mx.zeros((frames * inputs, inputs))
        self.kernel = mx.zeros((outputs, 3, 3, inputs))
        self._kernels = DerivedWeight(self._join)  # the underscore: not a parameter

    def _join(self, kernel: mx.array) -> mx.array:
        """Return the kernels (frames * 4 * O, 2, 2, C) of all frames and of their four phases."""
        inputs = kernel.shape[-1]
        rows, matrices = kernel.astype(mx.float32).reshape(-1, inputs), self.matrix
        products = [
            matmul(rows, matrix).reshape(kernel.shape)  # (O, 3, 3, C)
            for matrix in matrices.astype(mx.float32).reshape(-1, inputs, inputs)
        ]
        joined = mx.concatenate([polyphase_kernels(product) for product in products])
        return mx.contiguous(joined.astype(kernel.dtype))

    def __call__(self, x: mx.array) -> mx.array:
        """Turn (T, H, W, C) into (T * frames, 2 * H, 2 * W, O)."""
        T, H, W, C = x.shape
        outputs, frames = len(self.kernel), len(self.matrix) // C
        y = convolve(x, self._kernels(self.kernel), (1, 1), SAME)
        # (T, H + 1, W + 1, frames * 4 * O): the views are those of `blocks.Upsample`
        column = frames * 4 * outputs
        row = (W + 1) * column
        shape = (T, frames, H, 2, W, 2, outputs)
        along = (row, row + 2 * outputs, column, column + outputs, 1)
        y = mx.as_strided(y, shape, ((H + 1) * row, 4 * outputs, *along))
        return y.reshape(T * frames, 2 * H, 2 * W, outputs)  # (T, Y, X, O)


class Level(nn.Module):
    """Blocks at one size, and the layer that leads to the next size."""

    def __init__(self, inputs: int, outputs: int, frames: int) -> None:
        super().__init__()
        self.blocks = [MemoryBlock(inputs) for _ in range(TINY_BLOCKS)]
        self.grow = Grow(inputs, outputs, frames)


class Decoder(nn.Module):
    """Decode a normalized latent to frames, one latent frame at a time."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        first, *_, last = widths = config.widths
        self.input = conv(config.z_dim, first)
        sizes = zip(widths, widths[1:], TINY_GROWTH, strict=False)
        self.levels = [Level(inputs, outputs, frames) for inputs, outputs, frames in sizes]
        self.output = conv(last, 3 * config.patch_size**2)
        self._patch = config.patch_size

    def frames(self, latent: mx.array) -> Iterator[mx.array]:
        """Decode a latent (C, F, H, W) to frames (T, Y, X, 3), float32 in [-1, 1].

        Yields one frame for the first latent frame and four for each other one, evaluated.
        """
        z = 3 * mx.tanh(latent.astype(mx.float32).transpose(1, 2, 3, 0) / 3)
        z = z.astype(self.input.weight.dtype)
        cache = CausalCache()
        for f in range(len(z)):
            frames = self.chunk(z[f : f + 1], cache)
            yield frames[LEAD:] if f == 0 else frames

    def chunk(self, z: mx.array, cache: CausalCache) -> mx.array:
        """Decode one latent frame (1, H, W, C) to four, with the `cache` of those before it."""
        x = relu(self.input(z))
        *levels, last = self.levels
        for level in levels:
            x = cache.evaluate(level.grow(cache.run(level.blocks, x)))
        x = cache.run(last.blocks, x)
        # full size: two frames at a time
        pieces = [self._to_pixels(last.grow(x[t : t + 1]), cache) for t in range(len(x))]
        return cache.finish(mx.concatenate(pieces))

    def _to_pixels(self, x: mx.array, cache: CausalCache) -> mx.array:
        x = self.output(relu(x)).astype(mx.float32)
        return cache.evaluate(shuffle(mx.clip(2 * x - 1, -1, 1), self._patch))


def shuffle(x: mx.array, side: int) -> mx.array:
    """Move channels to `side` x `side` pixels, ordered channel, row, column (`pixel_shuffle`)."""
    T, H, W, C = x.shape
    x = x.reshape(T, H, W, C // side**2, side, side).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(T, H * side, W * side, C // side**2)  # (T, Y, X, C/side/side)
