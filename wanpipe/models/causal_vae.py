"""The blocks that both VAEs are built of: residual blocks, attention and resampling.

Works as `causal_conv` does: on one chunk of frames, channels last, with its `Past`.
Official sources: wan/modules/vae.py (Wan2.1) and vae2_2.py (Wan2.2), whose blocks are the same.
"""

import mlx.core as mx
import mlx.nn as nn

from wanpipe.models.causal_conv import (
    SAME,
    CausalConv,
    Conv,
    Derived,
    Norm,
    Past,
    TimeConv,
    convolve,
    summed,
)
from wanpipe.models.layers import Linear, attend


class ResidualBlock(nn.Module):
    """Two causal convolutions, each after norm and SiLU, beside a shortcut (`ResidualBlock`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = Norm(inputs)
        self.conv1 = CausalConv(inputs, outputs)
        self.norm2 = Norm(outputs)
        self.conv2 = CausalConv(outputs, outputs)
        self.shortcut = Linear(inputs, outputs) if inputs != outputs else None

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        y = past.evaluated(self.conv1(x, past, self.norm1))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(y, past, self.norm2, shortcut)


class AttentionBlock(nn.Module):
    """Attention of one head among the pixels of each frame (`AttentionBlock`)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim, silu=False)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def __call__(self, x: mx.array) -> mx.array:
        T, H, W, C = x.shape
        qkv = self.qkv(self.norm(x)).reshape(T, 1, H * W, 3 * C)  # (T, N=1, L, 3D)
        q, k, v = mx.split(qkv, 3, axis=-1)
        y = attend(q, k, v).reshape(T, H, W, C)  # (T, H, W, C)
        return x + self.proj(y)


class Middle(nn.Module):
    """The narrowest part of a VAE: attention between two residual blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.before = ResidualBlock(dim, dim)
        self.attention = AttentionBlock(dim)
        self.after = ResidualBlock(dim, dim)

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        return self.after(self.attention(self.before(x, past)), past)


def phases(weight: mx.array) -> mx.array:
    """Turn the 3x3 kernel (O, 3, 3, C) of a doubled image into 2x2 kernels (4*O, 2, 2, C) of it.

    One kernel for each of the four places of a doubled pixel, upper row first: taps that would see
    the same pixel twice are summed, in float32.
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

    The official convolution of the doubled image is computed on the image itself, see `phases`.
    """

    def __init__(self, inputs: int, outputs: int, temporal: bool) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, (3, 3), (1, 1), SAME)
        self.time_conv = TimeConv(inputs, 2 * inputs) if temporal else None
        self.time = 1 + temporal
        self._phases = Derived(phases)  # the underscore keeps it out of the parameters

    def __call__(self, x: mx.array, past: Past, shortcut: mx.array | None = None) -> mx.array:
        """Double a chunk and add `shortcut`, if there is one: (T, times, H, 2, W, 2, O)."""
        if self.time_conv is not None:
            x = self._double_frames(x, past)
        T, H, W, _ = x.shape
        kernels = self._phases(self.conv.weight)
        # at (i, j) stand the four places (a, b), of which each is wanted at (i - a, j - b)
        y = convolve(x, kernels, (1, 1), SAME)  # (T, H + 1, W + 1, 4 * O)
        column, outputs = len(kernels), len(kernels) // 4
        row = (W + 1) * column
        frame, times = (H + 1) * row, 1 if shortcut is None else shortcut.shape[1]
        shape = (T // times, times, H, 2, W, 2, outputs)
        strides = (times * frame, frame, row, row + 2 * outputs, column, column + outputs, 1)
        terms = [mx.as_strided(y, shape, strides), self.conv.bias]
        y = summed(*terms, *([] if shortcut is None else [shortcut]), dtype=x.dtype)
        return y.reshape(T, 2 * H, 2 * W, outputs)  # (T, Y=2H, X=2W, O)

    def _double_frames(self, x: mx.array, past: Past) -> mx.array:
        assert self.time_conv is not None
        T, H, W, C = x.shape
        if past.first:
            # the first frame stays single, and for the next chunk it counts as zeros
            past.keep(mx.zeros((2, H, W, C), x.dtype))
            return x
        y = self.time_conv(past.join(x, 2)).reshape(T, H, W, 2, C)
        return y.transpose(0, 3, 1, 2, 4).reshape(2 * T, H, W, C)


class Downsample(nn.Module):
    """Halve rows, columns and, if `temporal`, frames (`Resample`, downsample2d or downsample3d)."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        self.conv = Conv(dim, dim, (3, 3), (2, 2), ((0, 1), (0, 1)))
        self.time_conv = TimeConv(dim, dim, stride=2) if temporal else None

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        x = self.conv(x)
        if self.time_conv is None:
            return x
        if past.first:
            past.keep(x)
            return x
        return self.time_conv(past.join(x, 1))
