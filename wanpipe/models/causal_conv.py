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

from wanpipe.device import is_gpu
from wanpipe.errors import UsageError
from wanpipe.models import blas
from wanpipe.models.layers import fused

LARGEST_INPUT = 1_500_000_000  # elements; Metal's convolutions go wrong silently somewhere above
SMALL = 1 << 26  # bytes: waiting for a GPU after work on less costs more time than it saves memory
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
        self._left = 0  # arrays left so far, over all chunks
        self._input: mx.array | None = None
        self._settled, self._skipped, self._result = 0, 0, mx.array(0)

    @cached_property
    def later(self) -> "Past":
        """The past of layers that run more often than those before them, once for each piece."""
        return Past(self.lazy)

    def join(self, parts: Sequence[mx.array], count: int) -> mx.array:
        """Put the last `count` frames of the previous chunk before `parts`, zeros in the first."""
        zeros = (count, *parts[0].shape[1:])
        before = mx.zeros(zeros, parts[0].dtype) if self.first else self._frames.popleft()
        joined = mx.concatenate([before, *parts])
        self.keep(parts[-1] if len(parts[-1]) == count else joined[-count:])
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
        if not self.lazy:
            (mx.eval if x.nbytes > SMALL else mx.async_eval)(*self._frames, x)
        return x

    def end(self, x: mx.array) -> mx.array:
        """Evaluate `x`, the result of a chunk, and return it; the next chunk is not the first."""
        if not self.lazy:
            mx.eval(*self._frames, x)
        self.first = self.later.first = False
        return x


Layer = Callable[[mx.array, Past], mx.array]


@fused
def summed(*terms: mx.array) -> mx.array:
    """Add all `terms`, of which the last may be biases of one position."""
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


class Conv(nn.Module):
    """A convolution with bias; kernel, stride and padding for rows and columns, or for time too."""

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
        return summed(self.products(x), self.bias, dtype=x.dtype)

    def products(self, x: mx.array) -> mx.array:
        """Convolve without the bias, which the caller adds with what else there is to add."""
        return convolve(x, self.weight, self.stride, self.padding)


class CausalConv(Conv):
    """A 3x3x3 convolution that sees two frames before each frame, none after (`CausalConv3d`).

    Takes a chunk in parts, the last two frames apart where it has more: they are kept uncopied.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 3, 3), (1, 1, 1), ((0, 0), *SAME))

    def __call__(  # type: ignore[override]
        self, parts: Sequence[mx.array], past: Past, residual: mx.array | None = None
    ) -> mx.array:
        joined = past.join(parts, 2)
        if past.first and len(joined) == 3:
            # before a video's first frame there are zeros, which two thirds of the kernel would see
            y = convolve(parts[0], self.weight[:, 2:], self.stride, self.padding)
        else:
            y = self.products(joined)
        terms = (y, self.bias) if residual is None else (y, residual, self.bias)
        return summed(*terms, dtype=y.dtype)


class TimeConv(Conv):
    """A convolution over three frames, pixel by pixel; the frames before are already joined."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, (3, 1, 1), (stride, 1, 1), ((0, 0),) * 3)
