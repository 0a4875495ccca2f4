"""The blocks that both VAEs are built of: causal convolutions, norms, attention and resampling.

Works on one chunk of frames at a time, channels last (T, H, W, C), without a batch axis. The frames
that a chunk leaves for the next are handed on in a `Past`; no block remembers anything itself.
Official sources: wan/modules/vae.py (Wan2.1) and vae2_2.py (Wan2.2), whose blocks are the same.
"""

from collections import deque
from collections.abc import Iterable

import mlx.core as mx
import mlx.nn as nn

from wanpipe.device import is_gpu
from wanpipe.errors import UsageError
from wanpipe.models import blas
from wanpipe.models.layers import Linear, fused

LARGEST_INPUT = 1_500_000_000  # elements; Metal's convolutions go wrong silently somewhere above
Padding = tuple[tuple[int, int], ...]
SAME: Padding = ((1, 1), (1, 1))


class Past:
    """The last input frames of every causal layer of one video, in the order in which layers run.

    A chunk takes from the front what the chunk before it left, and leaves its own at the back.
    One is made for each video and handed to every layer; `lazy` leaves evaluation to the caller.
    """

    def __init__(self, lazy: bool = False) -> None:
        self.first, self.lazy = True, lazy
        self._frames: deque[mx.array] = deque()

    def join(self, x: mx.array, count: int) -> mx.array:
        """Put the last `count` frames of the previous chunk before `x`, zeros in the first."""
        zeros = (count, *x.shape[1:])
        before = mx.zeros(zeros, x.dtype) if self.first else self._frames.popleft()
        joined = mx.concatenate([before, x])
        self.keep(joined[-count:])
        return joined

    def keep(self, frames: mx.array) -> None:
        """Leave `frames` for the next chunk."""
        # contiguous: a slice would hold the whole chunk in memory until the next one
        self._frames.append(mx.contiguous(frames))

    def run(self, layers: Iterable[nn.Module], x: mx.array) -> mx.array:
        """Apply `layers` in turn, each evaluated before the next, so that none's work piles up."""
        for layer in layers:
            x = self.settled(layer(x, self))
        return x

    def settled(self, x: mx.array) -> mx.array:
        """Evaluate `x` and the frames that its layers leave, and return it."""
        if not self.lazy:
            mx.eval(x, *self._frames)
        return x

    def end(self, x: mx.array) -> mx.array:
        """Evaluate `x`, the result of a chunk, and return it; the next chunk is not the first."""
        self.first = False
        return self.settled(x)


class Conv(nn.Module):
    """A convolution with bias; kernel, stride and padding for rows and columns, or for time too.

    Raises UsageError where the input is larger than every backend can take.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: Padding,
    ) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, *kernel, inputs))
        self.bias = mx.zeros((outputs,))
        self.stride, self.padding = stride, padding

    def __call__(self, x: mx.array) -> mx.array:
        if x.size > LARGEST_INPUT:
            raise UsageError(
                f"a convolution of the VAE takes at most {LARGEST_INPUT} values, got {x.size}; "
                "make width or height smaller"
            )
        if not is_gpu():
            return self._on_cpu(x)
        flat = self.weight.ndim == 4  # rows and columns only: frames are the batch
        low, high = [side[0] for side in self.padding], [side[1] for side in self.padding]
        y = mx.conv_general(x if flat else x[None], self.weight, self.stride, (low, high))
        return (y if flat else y[0]) + self.bias

    def _on_cpu(self, x: mx.array) -> mx.array:
        weight, stride, padding = self.weight, self.stride, self.padding
        if weight.ndim == 4:
            weight, stride, padding = weight[:, None], (1, *stride), ((0, 0), *padding)
        return blas.sum_of_taps(mx.pad(x, [*padding, (0, 0)]), weight, stride) + self.bias


class CausalConv(Conv):
    """A 3x3x3 convolution that sees two frames before each frame, none after (`CausalConv3d`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 3, 3), (1, 1, 1), ((0, 0), *SAME))

    def __call__(self, x: mx.array, past: Past) -> mx.array:  # type: ignore[override]
        return super().__call__(past.join(x, 2))


class TimeConv(Conv):
    """A convolution over three frames, pixel by pixel; the frames before are already joined."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, (3, 1, 1), (stride, 1, 1), ((0, 0),) * 3)


@fused
def scaled(x: mx.array, gamma: mx.array) -> mx.array:
    """Multiply by `gamma`."""
    return x * gamma


@fused
def activated(x: mx.array, gamma: mx.array) -> mx.array:
    """Multiply by `gamma`, then apply SiLU."""
    x = x * gamma
    return x * mx.sigmoid(x)


class Norm(nn.Module):
    """Scale each pixel's channels to the norm sqrt(C), then by `gamma` (`RMS_norm`), then activate.

    `silu` says whether to activate. Computed in float32; returns the dtype of `x`.
    """

    def __init__(self, dim: int, silu: bool = True) -> None:
        super().__init__()
        self.gamma = mx.ones((dim,))
        self.silu = silu

    def __call__(self, x: mx.array) -> mx.array:
        # the reference divides by max(norm, 1e-12); beside a mean square that is 1e-24 / C
        y = mx.fast.rms_norm(x, None, 1e-24 / x.shape[-1])
        return (activated if self.silu else scaled)(y, self.gamma, dtype=x.dtype)


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
        y = self.conv1(self.norm1(x), past)
        y = self.conv2(self.norm2(y), past)
        return y + (x if self.shortcut is None else self.shortcut(x))


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
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=C**-0.5)
        return x + self.proj(y.reshape(T, H, W, C))  # (T, H, W, C)


class Middle(nn.Module):
    """The narrowest part of a VAE: attention between two residual blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.before = ResidualBlock(dim, dim)
        self.attention = AttentionBlock(dim)
        self.after = ResidualBlock(dim, dim)

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        return self.after(self.attention(self.before(x, past)), past)


class Upsample(nn.Module):
    """Double rows, columns and, if `temporal`, frames (`Resample`, upsample2d or upsample3d)."""

    def __init__(self, inputs: int, outputs: int, temporal: bool) -> None:
        super().__init__()
        self.conv = Conv(inputs, outputs, (3, 3), (1, 1), SAME)
        self.time_conv = TimeConv(inputs, 2 * inputs) if temporal else None

    def __call__(self, x: mx.array, past: Past) -> mx.array:
        if self.time_conv is not None:
            x = self._double_frames(x, past)
        T, H, W, C = x.shape
        x = mx.broadcast_to(x[:, :, None, :, None], (T, H, 2, W, 2, C))
        return self.conv(x.reshape(T, 2 * H, 2 * W, C))  # (T, Y=2H, X=2W, C)

    def _double_frames(self, x: mx.array, past: Past) -> mx.array:
        assert self.time_conv is not None
        T, H, W, C = x.shape
        if past.first:
            # the first frame stays single, and for the next chunk it counts as zeros
            past.keep(mx.zeros((2, H, W, C), x.dtype))
            return x
        x = self.time_conv(past.join(x, 2)).reshape(T, H, W, 2, C)
        return x.transpose(0, 3, 1, 2, 4).reshape(2 * T, H, W, C)  # (2T, H, W, C)


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
