"""The blocks of both VAEs: residual blocks, attention and resampling.

Like the layers of `causal_conv`, they take one chunk of frames, channels last, and its cache.
Source: wan/modules/vae.py (Wan2.1) and vae2_2.py (Wan2.2), whose blocks are the same.
"""

import mlx.core as mx
import mlx.nn as nn

from wanpipe.models.layers import Linear, attend
from wanpipe.models.vae.causal_conv import (
    SAME,
    CausalCache,
    CausalConv,
    Conv,
    DerivedWeight,
    Norm,
    TimeConv,
    convolve,
    sum_terms,
)


class ResidualBlock(nn.Module):
    """Two causal convolutions, each after norm and SiLU, and a shortcut (`ResidualBlock`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = Norm(outputs)
        self.conv2 = CausalConv(outputs, outputs)
        self.shortcut = Linear(inputs, outputs) if inputs != outputs else None

    def __call__(self, x: mx.array, cache: CausalCache) -> mx.array:
        y = cache.evaluate(self.conv1(x, cache, self.norm1))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(y, cache, self.norm2, shortcut)


class AttentionBlock(nn.Module):
    """Single-head attention among the positions of each frame (`AttentionBlock`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim, silu=False)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        T, H, W, C = x.shape
        qkv = self.qkv(self.norm(x)).reshape(T, 1, H * W, 3 * C)  # (B=T, N=1, L, 3 * D)
        q, k, v = mx.split(qkv, 3, axis=-1)
        y = attend(q, k, v).reshape(T, H, W, C)  # (T, H, W, C)
        return x + self.proj(y)


class Middle(nn.Module):
    """The bottleneck of a VAE: attention between two residual blocks (`middle`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.before = ResidualBlock(dim, dim)
        self.attention = AttentionBlock(dim)
        self.after = ResidualBlock(dim, dim)

    def __call__(self, x: mx.array, cache: CausalCache) -> mx.array:
        return self.after(self.attention(self.before(x, cache)), cache)


def polyphase_kernels(weight: mx.array) -> mx.array:
    """Split the 3x3 kernel (O, 3, 3, C) of an upsampled image into 2x2 kernels of the image itself.

    Returns (4 * O, 2, 2, C): one kernel for each of the four output pixels of an input pixel, upper
    row first. Taps that read the same input pixel are summed in float32.
    """

    def halves(kernel: mx.array, axis: int) -> list[mx.array]:
        before, at, after = mx.split(kernel, 3, axis)
        pairs = ([before, at + after], [before + at, after])
        return [mx.concatenate(pair, axis) for pair in pairs]

    upper_and_lower = halves(weight.astype(mx.float32), 1)
    kernels = [kernel for rows in upper_and_lower for kernel in halves(rows, 2)]
    return mx.contiguous(mx.concatenate(kernels).astype(weight.dtype))


class Upsample(nn.Module):
    """Double rows, columns and, if `temporal`, frames (`Resample`, upsample2d or upsample3d).

    The official code convolves the upsampled image; this convolves the image itself with
    `polyphase_kernels`.
    """

    def __init__(self, inputs: int, outputs: int, temporal: bool) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, (3, 3), (1, 1), SAME)
        self.time_conv = TimeConv(inputs, 2 * inputs) if temporal else None
        self.factor_t = 1 + temporal
        self._polyphase = DerivedWeight(polyphase_kernels)  # the underscore: not a parameter

    def __call__(
        self, x: mx.array, cache: CausalCache, shortcut: mx.array | None = None
    ) -> mx.array:
        """Upsample a chunk, and add the optional `shortcut` (T, factor_t, H, 2, W, 2, O)."""
        if self.time_conv is not None:
            x = self._double_frames(x, cache)
        T, H, W, _ = x.shape
        kernels = self._polyphase(self.conv.weight)
        # position (i, j) holds the four phases (a, b), and phase (a, b) belongs to (i - a, j - b)
        y = convolve(x, kernels, (1, 1), SAME)  # (T, H + 1, W + 1, 4 * O)
        column, outputs = len(kernels), len(kernels) // 4
        row = (W + 1) * column
        frame, factor_t = (H + 1) * row, 1 if shortcut is None else shortcut.shape[1]
        shape = (T // factor_t, factor_t, H, 2, W, 2, outputs)
        strides = (factor_t * frame, frame, row, row + 2 * outputs, column, column + outputs, 1)
        terms = [mx.as_strided(y, shape, strides), self.conv.bias]
        y = sum_terms(*terms, *([] if shortcut is None else [shortcut]), dtype=x.dtype)
        return y.reshape(T, 2 * H, 2 * W, outputs)  # (T, Y=2H, X=2W, O)

    def _double_frames(self, x: mx.array, cache: CausalCache) -> mx.array:
        assert self.time_conv is not None
        T, H, W, C = x.shape
        if cache.first:
            # the first frame of a video is not doubled, and the next chunk sees zeros in its place
            cache.append(mx.zeros((2, H, W, C), x.dtype))
            return x
        y = self.time_conv(cache.concat(x, 2)).reshape(T, H, W, 2, C)  # (T, H, W, 2, C)
        return y.transpose(0, 3, 1, 2, 4).reshape(2 * T, H, W, C)  # (2 * T, H, W, C)


class Downsample(nn.Module):
    """Halve rows, columns and, if `temporal`, frames (`Resample`, downsample2d or downsample3d)."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.conv = Conv(dim, dim, (3, 3), (2, 2), ((0, 1), (0, 1)))
        self.time_conv = TimeConv(dim, dim, stride=2) if temporal else None

    def __call__(self, x: mx.array, cache: CausalCache) -> mx.array:
        x = self.conv(x)
        if self.time_conv is None:
            return x
        if cache.first:
            cache.append(x)
            return x
        return self.time_conv(cache.concat(x, 1))
