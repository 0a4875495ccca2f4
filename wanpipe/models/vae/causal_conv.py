"""The convolutions of both VAEs, and the cache that connects one chunk of frames to the next.

Layers take one chunk at a time, channels last (T, H, W, C), without a batch axis. They hold no
state: the frames that the next chunk needs are kept in a `CausalCache`.
Source: wan/modules/vae.py (Wan2.1) and vae2_2.py (Wan2.2), `CausalConv3d`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, reduce
from operator import add

import mlx.core as mx
import mlx.nn as nn

from wanpipe.backend import blas, cpu_kernels, cuda_conv, cuda_kernels
from wanpipe.backend.device import is_cuda, is_gpu
from wanpipe.errors import UsageError
from wanpipe.models.execution import BoundedEval, defer_eval
from wanpipe.models.layers import fused
from wanpipe.models.tuning import multiplies_tiles, stacks_frames

# elements; above about 2e9, Metal's convolutions return wrong values without an error
LARGEST_INPUT = 1_500_000_000
SMALL_RESULTS = 1 << 25  # bytes that may be in flight; a GPU would wait for the host between them
Padding = tuple[tuple[int, int], ...]
SAME: Padding = ((1, 1), (1, 1))


class CausalCache:
    """A queue of the last input frames of every causal layer, in the order in which layers run.

    Create one per video and pass it to every layer. Each chunk pops the frames of the previous
    chunk from the front and appends its own at the back (`feat_cache` in the official code).
    With `lazy`, evaluation is left to the caller.
    """

    def __init__(self, lazy: bool = False) -> None:
        self.first, self.lazy = True, lazy  # `first`: no chunk has been finished
        room = SMALL_RESULTS if is_gpu() else 0
        self._evaluate = defer_eval if lazy else BoundedEval(room=room)
        self._frames: deque[mx.array] = deque()
        self._appended = 0  # arrays appended over all chunks
        # run_cached: the last input, and the leading layers whose output is constant
        self._input: mx.array | None = None
        self._constant, self._skipped, self._output = 0, 0, mx.array(0)

    @cached_property
    def nested(self) -> "CausalCache":
        """The cache of layers that run several times per chunk, once for each piece of it."""
        return CausalCache(self.lazy)

    def pop(self, x: mx.array, count: int) -> mx.array:
        """Pop the `count` frames that precede `x`; zeros in the first chunk."""
        return mx.zeros((count, *x.shape[1:]), x.dtype) if self.first else self._frames.popleft()

    def append(self, frames: mx.array) -> None:
        """Append `frames` for the next chunk."""
        # contiguous: a slice would hold the whole chunk in memory until the next one
        self._frames.append(mx.contiguous(frames))
        self._appended += 1

    def concat(self, x: mx.array, count: int) -> mx.array:
        """Prepend the `count` cached frames to `x`, and cache the last `count` frames of both."""
        joined = mx.concatenate([self.pop(x, count), x])
        self.append(joined[-count:])
        return joined

    def run(self, layers: Iterable["Layer"], x: mx.array) -> mx.array:
        """Apply `layers` in order, and evaluate after each to bound the pending work."""
        for layer in layers:
            x = self.evaluate(layer(x, self))
        return x

    def run_cached(self, layers: Sequence["Layer"], x: mx.array) -> mx.array:
        """Apply `layers` as `run` does, but reuse outputs while `x` is the same array as before.

        When a layer's input repeats and its cached frames no longer change, its output is constant
        from then on, so it is reused, bit for bit. The first layer becomes constant first.
        """
        repeated, self._input = x is self._input, x
        if not repeated:
            self._constant = self._skipped = 0
        elif self._constant:
            x = self._output
            self._frames.rotate(-self._skipped)
        for layer in layers[self._constant :]:
            before, appended = tuple(self._frames) if repeated else (), self._appended
            x = self.evaluate(layer(x, self))
            count = self._appended - appended
            after = tuple(self._frames)[len(self._frames) - count :]
            repeated = repeated and all(map(mx.array_equal, before, after))
            if repeated:
                self._constant += 1
                self._skipped += count
                self._output = x
        return x

    def evaluate(self, x: mx.array) -> mx.array:
        """Evaluate `x` and all cached frames, and return `x`."""
        # frames first: while one waits for its copy, the array that it is copied from stays alive
        self._evaluate(*self._frames, x)
        return x

    def finish(self, x: mx.array) -> mx.array:
        """Evaluate `x`, the output of a chunk, and return it; later chunks are not the first."""
        if not self.lazy:
            mx.eval(*self._frames, x)
        self.first = self.nested.first = False
        return x


Layer = Callable[[mx.array, CausalCache], mx.array]


def sum_terms(*terms: mx.array, dtype: mx.Dtype) -> mx.array:
    """Add `terms` in float32 and return `dtype`. A term may be a bias (C) for all positions."""
    if is_cuda() and cuda_kernels.has_whole_vectors(terms[0]):
        return cuda_kernels.sum_terms([term.astype(dtype) for term in terms])
    if not is_gpu():
        return cpu_kernels.sum_terms(*terms).astype(dtype)
    return _sum_terms(*terms, dtype=dtype)


@fused
def _sum_terms(*terms: mx.array) -> mx.array:
    return reduce(add, terms)


def convolve(x: mx.array, weight: mx.array, stride: tuple[int, ...], padding: Padding) -> mx.array:
    """Convolve (T, Y, X, C) with (O, *kernel, C) over rows and columns, or over frames as well.

    Raises UsageError if the input is larger than every backend supports.
    """
    if x.size > LARGEST_INPUT:
        raise UsageError(
            f"a convolution of the VAE takes at most {LARGEST_INPUT} values, got {x.size}; "
            "make width or height smaller"
        )
    is_2d = weight.ndim == 4  # frames are the batch
    if not is_gpu():
        if is_2d:
            weight, stride, padding = weight[:, None], (1, *stride), ((0, 0), *padding)
        return blas.convolve(x, weight, stride, padding)
    low, high = [side[0] for side in padding], [side[1] for side in padding]
    y = mx.conv_general(x if is_2d else x[None], weight, stride, (low, high))
    return y if is_2d else y.squeeze(0)


@fused
def scale(x: mx.array, gamma: mx.array) -> mx.array:
    """Multiply by `gamma`."""
    return x * gamma


@fused
def scale_silu(x: mx.array, gamma: mx.array) -> mx.array:
    """Multiply by `gamma`, then apply SiLU."""
    x = x * gamma
    return x * mx.sigmoid(x)


class Norm(nn.Module):
    """Scale each position's channels to an L2 norm of sqrt(C), then by `gamma` (`RMS_norm`).

    With `silu`, SiLU follows. Computes in float32 and returns the dtype of `x`.
    """

    def __init__(self, dim: int, silu: bool = True) -> None:
        super().__init__()
        self.gamma = mx.ones((dim,))
        self.silu = silu

    def __call__(self, x: mx.array) -> mx.array:
        # the reference divides by max(norm, 1e-12); added to a mean square, that is 1e-24 / C
        eps = 1e-24 / x.shape[-1]
        if not is_gpu():
            return cpu_kernels.rms_norm_silu(x, self.gamma, eps, self.silu)
        function = scale_silu if self.silu else scale
        return function(mx.fast.rms_norm(x, None, eps), self.gamma, dtype=x.dtype)

    def concat(
        self, before: mx.array, x: mx.array, stacked: bool = False
    ) -> tuple[mx.array, mx.array]:
        """Prepend two normed frames to the norm of x; return the result and its last two frames.

        With `stacked`, on CUDA, each frame has the two before it and itself as channels instead.
        """
        if stacked or (is_cuda() and cuda_kernels.has_whole_vectors(x)):
            return cuda_kernels.norm_concat(before, x, self.gamma, stacked=stacked)
        # the last two frames separately, so that caching them needs no copy
        parts = [self(x[:-2]), self(x[-2:])] if len(x) > 2 else [self(x)]
        joined = mx.concatenate([before, *parts])
        return joined, parts[-1] if len(parts[-1]) == 2 else joined[-2:]


class ConvBase(nn.Module):
    """The weight, bias, stride and padding of a convolution in two or three dimensions."""

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

    def without_bias(self, x: mx.array) -> mx.array:
        """Convolve without the bias, which the caller adds together with other terms."""
        return convolve(x, self.weight, self.stride, self.padding)


class Conv(ConvBase):
    """A convolution with bias."""

    def __call__(self, x: mx.array) -> mx.array:
        return sum_terms(self.without_bias(x), self.bias, dtype=x.dtype)


class CausalConv(ConvBase):
    """A 3x3x3 convolution that sees the two frames before each frame (`CausalConv3d`)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 3, 3), (1, 1, 1), ((0, 0), *SAME))
        # the underscore: not a parameter
        self._stacked = DerivedWeight(stack_frames)
        self._tiled = DerivedWeight(cuda_conv.tile_weight)

    def __call__(
        self,
        x: mx.array,
        cache: CausalCache,
        norm: Norm | None = None,
        residual: mx.array | None = None,
    ) -> mx.array:
        """Convolve a chunk after the optional `norm`, and add the optional `residual`."""
        stacked = norm is not None and not cache.first and self.stacks_frames(x)
        if norm is None:
            joined = cache.concat(x, 2)
        else:
            joined, last = norm.concat(cache.pop(x, 2), x, stacked)
            cache.append(last)
            joined = cache.evaluate(joined)
        if stacked:
            y = convolve(joined, self._stacked(self.weight), (1, 1), SAME)
        elif cache.first and len(joined) == 3:
            # two thirds of the kernel would see only the zeros before the first frame
            y = convolve(joined[2:], self.weight[:, 2:], self.stride, self.padding)
        elif self.multiplies_tiles(x):
            return cuda_conv.convolve(joined, self._tiled(self.weight), self.bias, residual)
        else:
            y = self.without_bias(joined)
        terms = (y, self.bias) if residual is None else (y, residual, self.bias)
        return sum_terms(*terms, dtype=y.dtype)

    def stacks_frames(self, x: mx.array) -> bool:
        """Return whether this device is faster with the three frames stacked as channels."""
        outputs, *_, inputs = self.weight.shape
        faster = is_cuda() and stacks_frames(inputs, outputs) and not self.multiplies_tiles(x)
        return faster and cuda_kernels.has_whole_vectors(x)

    def multiplies_tiles(self, x: mx.array) -> bool:
        """Return whether this device has a faster kernel than MLX's."""
        outputs, *_, inputs = self.weight.shape
        wanted = multiplies_tiles(inputs, outputs) and x.size <= LARGEST_INPUT
        return wanted and is_cuda() and cuda_conv.computes(x.dtype)


def stack_frames(weight: mx.array) -> mx.array:
    """Turn a kernel (O, 3, 3, 3, C) over frames into one (O, 3, 3, 3 * C) over their channels."""
    outputs, *_, inputs = weight.shape
    # (O, 3, 3, 3 * C)
    return mx.contiguous(weight.transpose(0, 2, 3, 1, 4).reshape(outputs, 3, 3, 3 * inputs))


class DerivedWeight:
    """Cache an array that is computed from a weight, until the weight is replaced."""

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
    """A convolution of each position over three frames; the input includes the cached frames."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, (3, 1, 1), (stride, 1, 1), ((0, 0),) * 3)
