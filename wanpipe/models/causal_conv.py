"""The convolutions of both VAEs, and the frames that each leaves for the next chunk.

Works on one chunk of frames at a time, channels last (T, H, W, C), without a batch axis. What a
chunk leaves is handed on in a `Past`; no layer remembers anything itself.
Official sources: wan/modules/vae.py (Wan2.1) and vae2_2.py (Wan2.2), `CausalConv3d`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, reduce
from operator import add

import mlx.core as mx
import mlx.nn as nn

from wanpipe.backend import blas, kernels
from wanpipe.backend.device import is_cuda, is_gpu
from wanpipe.errors import UsageError
from wanpipe.models.blocks import Paced, unpaced
from wanpipe.models.layers import fused
from wanpipe.models.vae_sizes import NARROW

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
        self._pace = unpaced if lazy else Paced()
        self._frames: deque[mx.array] = deque()
        self._left = 0  # arrays left so far, over all chunks
        self._input: mx.array | None = None
        self._settled, self._skipped, self._result = 0, 0, mx.array(0)

    @cached_property
    def later(self) -> "Past":
        """The past of layers that run more often than those before them, once for each piece."""
        return Past(self.lazy)

    def before(self, x: mx.array, count: int) -> mx.array:
        """Take the `count` frames that the previous chunk left before `x`, zeros in the first."""
        return mx.zeros((count, *x.shape[1:]), x.dtype) if self.first else self._frames.popleft()

    def join(self, x: mx.array, count: int) -> mx.array:
        """Put the last `count` frames of the previous chunk before `x`, and leave those of `x`."""
        joined = mx.concatenate([self.before(x, count), x])
        self.keep(joined[-count:])
        return joined

    def keep(self, frames: mx.array) -> None:
        """Leave `frames` for the next chunk."""
        # contiguous: a slice would hold the whole chunk in memory until the next one
        self._frames.append(mx.contiguous(frames))
        self._left += 1

    def run(self, layers: Iterable["Layer"], x: mx.array) -> mx.array:
        """Apply `layers` in turn, each evaluated before the next, so that none's work piles up."""
        for layer in layers:
            x = self.evaluated(layer(x, self))
        return x

    def run_still(self, layers: Sequence["Layer"], x: mx.array) -> mx.array:
        """Do as `run`, but skip what cannot change where `x` is the very array of the last chunk.

        A layer whose input stands still has settled when it leaves the frames that it found: all
        that follows is what it gave, bit for bit. That is so from the first layer on.
        """
        still, self._input = x is self._input, x
        if not still:
            self._settled = self._skipped = 0
        elif self._settled:
            x = self._result
            self._frames.rotate(-self._skipped)
        for layer in layers[self._settled :]:
            found, left = tuple(self._frames) if still else (), self._left
            x = self.evaluated(layer(x, self))
            count = self._left - left
            now = tuple(self._frames)[len(self._frames) - count :]
            still = still and all(map(mx.array_equal, found, now))
            if still:
                self._settled, self._skipped, self._result = (
                    self._settled + 1,
                    self._skipped + count,
                    x,
                )
        return x

    def evaluated(self, x: mx.array) -> mx.array:
        """Evaluate `x` and the frames that its layers leave, and return it."""
        # frames first: as long as one waits for its copy, what it is copied from stays in memory
        self._pace(*self._frames, x)
        return x

    def end(self, x: mx.array) -> mx.array:
        """Evaluate `x`, the result of a chunk, and return it; the next chunk is not the first."""
        if not self.lazy:
            mx.eval(*self._frames, x)
        self.first = self.later.first = False
        return x


Layer = Callable[[mx.array, Past], mx.array]


def summed(*terms: mx.array, dtype: mx.Dtype) -> mx.array:
    """Add all `terms` in float32, of which some may be biases (C) of all positions."""
    if is_cuda() and kernels.fits(terms[0]):
        return kernels.summed([term.astype(dtype) for term in terms])
    return _summed(*terms, dtype=dtype)


@fused
def _summed(*terms: mx.array) -> mx.array:
    return reduce(add, terms)


def convolve(x: mx.array, weight: mx.array, stride: tuple[int, ...], padding: Padding) -> mx.array:
    """Convolve (T, Y, X, C) with (O, *K, C), K over rows and columns, or over frames too.

    Raises UsageError where the input is larger than every backend can take.
    """
    if x.size > LARGEST_INPUT:
        raise UsageError(
            f"a convolution of the VAE takes at most {LARGEST_INPUT} values, got {x.size}; "
            "make width or height smaller"
        )
    flat = weight.ndim == 4  # rows and columns only: frames are the batch
    if not is_gpu():
        if flat:
            weight, stride, padding = weight[:, None], (1, *stride), ((0, 0), *padding)
        return blas.convolve(x, weight, stride, padding)
    low, high = [side[0] for side in padding], [side[1] for side in padding]
    y = mx.conv_general(x if flat else x[None], weight, stride, (low, high))
    return y if flat else y.squeeze(0)


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
        if not self.silu:
            return scaled(y, self.gamma, dtype=x.dtype)
        if is_gpu():
            return activated(y, self.gamma, dtype=x.dtype)
        return blas.silu(scaled(y, self.gamma, dtype=mx.float32)).astype(x.dtype)

    def join(self, before: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
        """Put two frames, already normed, before the norm of x; give that and its last two."""
        if is_cuda() and kernels.fits(x):
            return kernels.norm_join(before, x, self.gamma, stacked=False)
        # the last two apart: what is left for the next chunk needs no copy
        parts = [self(x[:-2]), self(x[-2:])] if len(x) > 2 else [self(x)]
        joined = mx.concatenate([before, *parts])
        return joined, parts[-1] if len(parts[-1]) == 2 else joined[-2:]


class Kernel(nn.Module):
    """A kernel with bias, its stride and padding, for rows and columns, or for time too."""

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

    def products(self, x: mx.array) -> mx.array:
        """Convolve without the bias, which the caller adds with what else there is to add."""
        return convolve(x, self.weight, self.stride, self.padding)


class Conv(Kernel):
    """A convolution with bias."""

    def __call__(self, x: mx.array) -> mx.array:
        return summed(self.products(x), self.bias, dtype=x.dtype)


class CausalConv(Kernel):
    """A 3x3x3 convolution that sees two frames before each frame, none after (`CausalConv3d`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 3, 3), (1, 1, 1), ((0, 0), *SAME))
        self._stacked = Derived(stacked)  # the underscore keeps it out of the parameters

    def __call__(
        self,
        x: mx.array,
        past: Past,
        norm: Norm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Convolve a chunk, after `norm` if there is one, and add `residual`, if there is one."""
        if norm is None:
            y = self._products(past.join(x, 2), past)
        elif past.first or not (self.narrow and kernels.fits(x)):
            joined, left = norm.join(past.before(x, 2), x)
            past.keep(left)
            y = self._products(past.evaluated(joined), past)
        else:
            joined, left = kernels.norm_join(past.before(x, 2), x, norm.gamma, stacked=True)
            past.keep(left)
            y = convolve(past.evaluated(joined), self._stacked(self.weight), (1, 1), SAME)
        terms = (y, self.bias) if residual is None else (y, residual, self.bias)
        return summed(*terms, dtype=y.dtype)

    @property
    def narrow(self) -> bool:
        """Whether it is better computed with three frames as channels of one."""
        outputs, *_, inputs = self.weight.shape
        return is_cuda() and inputs < NARROW <= 2 * outputs

    def _products(self, joined: mx.array, past: Past) -> mx.array:
        if past.first and len(joined) == 3:
            # before a video's first frame there are zeros, which two thirds of the kernel would see
            return convolve(joined[2:], self.weight[:, 2:], self.stride, self.padding)
        return self.products(joined)


def stacked(weight: mx.array) -> mx.array:
    """Turn a kernel (O, 3, 3, 3, C) over frames into one (O, 3, 3, 3 * C) over their channels."""
    outputs, *_, inputs = weight.shape
    return mx.contiguous(weight.transpose(0, 2, 3, 1, 4).reshape(outputs, 3, 3, 3 * inputs))


class Derived:
    """What follows from a weight, made once for as long as the weight is the same."""

    def __init__(self, derive: Callable[[mx.array], mx.array]) -> None:
        self.derive = derive
        self.source: mx.array | None = None
        self.result = mx.array(0)

    def __call__(self, weight: mx.array) -> mx.array:
        if self.source is not weight:
            self.source, self.result = weight, self.derive(weight)
            mx.eval(self.result)
        return self.result


class TimeConv(Conv):
    """A convolution over three frames, pixel by pixel; the frames before are already joined."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, (3, 1, 1), (stride, 1, 1), ((0, 0),) * 3)
