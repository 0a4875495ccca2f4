"""Layers that the transformers share, and the dtype zones they keep.

Norms and elementwise work run in float32, matrix products and attention in the weights' dtype.
Knows no model.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn

from wanpipe.backend import blas, kernels
from wanpipe.backend.device import is_cuda, is_gpu, is_metal

# Keys that cuDNN's attention takes at once on an H100: with a multiple of them it is 7 % faster
# among 32760. MANY is where that is tried, FAR how many keys there must be to a mean.
TILE, MANY, FAR = 128, 8192, 200

# Operations of one attention kernel on Metal, 2 s of an M1: macOS ends what keeps the GPU from the
# display for seconds (ml-explore/mlx#3267). A heavier attention goes in groups of heads.
HEAVIEST = 5e12


class Activation(Protocol):
    """A function of one array, elementwise, that gives `dtype`."""

    def __call__(self, x: mx.array, /, *, dtype: mx.Dtype) -> mx.array: ...


class Fused(Protocol):
    """An elementwise function that takes any dtype, computes in float32 and gives `dtype`."""

    def __call__(self, *arrays: mx.array, dtype: mx.Dtype) -> mx.array: ...


def fused(function: Callable[..., mx.array]) -> Fused:
    """Make one Metal kernel of an elementwise float32 `function` and the casts around it."""

    def zoned(dtype: mx.Dtype) -> Callable[..., mx.array]:
        def call(*arrays: mx.array) -> mx.array:
            return function(*(array.astype(mx.float32) for array in arrays)).astype(dtype)

        return call

    @cache
    def compiled(dtype: mx.Dtype) -> Callable[..., mx.array]:
        return mx.compile(zoned(dtype), shapeless=True)

    @wraps(function)
    def choose(*arrays: mx.array, dtype: mx.Dtype) -> mx.array:
        # elsewhere compiling costs seconds: on CUDA, where `kernels` has what is large, and on the
        # CPU, where it would call the C++ compiler of the user's machine, if there is one
        return (compiled(dtype) if is_metal() else zoned(dtype))(*arrays)

    return choose


@fused
def tanh_gelu(x: mx.array) -> mx.array:
    """Apply the tanh form of GELU."""
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


@fused
def gelu_exact(x: mx.array) -> mx.array:
    """Apply GELU in its exact form, with the error function."""
    return 0.5 * x * (1 + mx.erf(x * math.sqrt(0.5)))


@fused
def silu(x: mx.array) -> mx.array:
    """Apply x * sigmoid(x)."""
    return x * mx.sigmoid(x)


@fused
def modulate(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """Scale by one plus `scale`, then shift."""
    return x * (1 + scale) + shift


@fused
def add(x: mx.array, y: mx.array) -> mx.array:
    """Add `y` to the residual stream."""
    return x + y


@fused
def add_gated(x: mx.array, y: mx.array, gate: mx.array) -> mx.array:
    """Add `y` times `gate` to the residual stream."""
    return x + y * gate


def gelu(x: mx.array, *, dtype: mx.Dtype) -> mx.array:
    """Apply the tanh form of GELU to `x`, whose dtype is that of the result."""
    # fused, tanh is six times slower on an H100 than the memory
    return kernels.gelu(x) if is_cuda() and kernels.fits(x) else tanh_gelu(x, dtype=dtype)


def norm_modulate(
    x: mx.array, shift: mx.array, scale: mx.array, *, eps: float, dtype: mx.Dtype
) -> mx.array:
    """Normalise the stream x (G, L / G, D), then modulate by (G, 1, D), and give `dtype`."""
    return modulate(mx.fast.layer_norm(x, None, None, eps), shift, scale, dtype=dtype)


def add_norm(
    x: mx.array,
    parts: list[mx.array],
    gate: mx.array | None,
    shift: mx.array,
    scale: mx.array,
    *,
    plus_one: bool,
    eps: float,
    dtype: mx.Dtype,
) -> tuple[mx.array, mx.array]:
    """Add to the stream x (G, L / G, D) what `parts` hold one after another, all but the last in
    equally many rows, times `gate` (G, 1, D) if there is one; give the stream, and its norm in
    `dtype`.

    The norm is modulated by `shift` and `scale` (G, 1, D) with `plus_one`; without, they are its
    own bias and weight (D).
    """
    if is_cuda():
        return kernels.add_norm(
            x, parts, gate, shift, scale, plus_one=plus_one, eps=eps, dtype=dtype
        )
    y = (mx.concatenate(parts) if len(parts) > 1 else parts[0]).reshape(x.shape)
    x = add(x, y, dtype=x.dtype) if gate is None else add_gated(x, y, gate, dtype=x.dtype)
    if plus_one:
        return x, norm_modulate(x, shift, scale, eps=eps, dtype=dtype)
    return x, mx.fast.layer_norm(x, scale, shift, eps).astype(dtype)


def matmul_dtype(linear: nn.Module) -> mx.Dtype:
    """The dtype in which a linear layer, quantised or not, wants its input."""
    stored: mx.array = linear.scales if "scales" in linear else linear.weight
    return stored.dtype


def layer_norm(x: mx.array, norm: nn.LayerNorm, dtype: mx.Dtype) -> mx.array:
    """Normalise in float32, with the parameters of `norm`, and give `dtype`."""
    x = x.astype(mx.float32)
    return mx.fast.layer_norm(x, norm.weight, norm.bias, norm.eps).astype(dtype)


def rms_norm(x: mx.array, norm: nn.RMSNorm) -> mx.array:
    """Normalise by the root mean square of the last axis, in float32, and give the dtype of `x`."""
    # a float32 weight would turn the whole result, and what follows, into float32
    return mx.fast.rms_norm(x, norm.weight.astype(x.dtype), norm.eps)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """View (..., L, D) as (1, N, L, D / N), all leading axes joined with L."""
    return x.reshape(1, -1, heads, x.shape[-1] // heads).transpose(0, 2, 1, 3)  # (B, N, L, D)


def with_means(x: mx.array, groups: int) -> mx.array:
    """Follow rows x (L, D) by the mean of each of so many groups of them, of rows side by side."""
    if is_cuda():
        return kernels.with_means(x, groups)
    parts = mx.split(x.astype(mx.float32), [len(x) * n // groups for n in range(1, groups)])
    return mx.concatenate([x, *(part.mean(0, keepdims=True).astype(x.dtype) for part in parts)])


def evened(x: mx.array) -> mx.array:
    """Follow keys or values x (L, D) by means of them, so that there are a multiple of TILE, where
    that makes attention faster and takes less from its results than their dtype does.

    By Jensen's inequality the mean of a group's keys weighs no more than the mean of their weights,
    so n means of equal groups weigh n / L at most, and move a result by no more than that part of
    its distance from the mean of the values. Where all weigh alike, that distance is zero.
    """
    more = -len(x) % TILE
    pays = is_cuda() and kernels.fits(x) and x.itemsize == 2 and len(x) >= max(MANY, FAR * more)
    return with_means(x, more) if pays and more else x


def attend(
    q: mx.array, k: mx.array, v: mx.array, scale: float | None = None, mask: mx.array | None = None
) -> mx.array:
    """Attend with q, k and v (B, N, L, D) and join the heads: (B, L, N * D).

    `scale` is 1 / sqrt(D) unless given; `mask` (N, L, L) is added to the scores.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not is_gpu():
        return joined(_attend_blockwise(q * scale, k, v, mask).astype(v.dtype))
    B, N, L, D = q.shape
    work = 4 * B * N * L * k.shape[2] * D
    parts = min(N, math.ceil(work / HEAVIEST)) if is_metal() else 1
    if parts == 1:
        return joined(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask))
    assert mask is None
    cuts = [N * part // parts for part in range(1, parts)]
    heads = zip(*(mx.split(x, cuts, axis=1) for x in (q, k, v)), strict=True)
    attended = [mx.fast.scaled_dot_product_attention(*one, scale=scale) for one in heads]
    return mx.concatenate([joined(x) for x in attended], axis=2)


def joined(x: mx.array) -> mx.array:
    """Join the heads of (B, N, L, D): (B, L, N * D)."""
    return x.transpose(0, 2, 1, 3).flatten(2)  # (B, L, D)


def _attend_blockwise(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Attend on the CPU, 64 keys at a time with a running maximum; scores never take (L, L).

    There MLX's own attention sums key by key, which costs 2e-5 of the result where 500 padding keys
    of a short prompt are equal.
    """
    top, total, x = mx.array(-math.inf), mx.array(0.0), mx.array(0.0)
    for start in range(0, k.shape[2], 64):
        keys = slice(start, start + 64)
        scores = matmul(q, k[:, :, keys].swapaxes(2, 3))
        scores = scores if mask is None else scores + mask[:, :, keys]
        before, top = top, mx.maximum(top, scores.max(axis=-1, keepdims=True))
        fade, weights = mx.exp(before - top), mx.exp(scores - top)
        total = total * fade + weights.sum(axis=-1, keepdims=True)
        x = x * fade + matmul(weights, v[:, :, keys])
        mx.eval(top, total, x)  # else what every round has made stays until the last
    return x / total


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """Multiply matrices with the fastest product there is on this backend."""
    return a @ b if is_gpu() else blas.matmul(a, b)


def linear(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """Multiply x (..., I) by the transpose of `weight` (O, I) and add `bias`, if there is one."""
    if bias is not None and is_gpu():
        return mx.addmm(bias, x, weight.T)
    y = matmul(x, weight.T)
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """MLX's linear layer, with the product that suits the backend."""

    def __init__(self, width: int, out: int, bias: bool = True) -> None:
        # zeros, since weights come from a file: MLX's own layer draws them, and as long as nobody
        # draws on, every drawing is kept as the origin of the next random key, 120 kB a network
        nn.Module.__init__(self)
        self.weight = mx.zeros((out, width))
        if bias:
            self.bias = mx.zeros((out,))

    def __call__(self, x: mx.array) -> mx.array:
        return linear(x, self.weight, self.get("bias"))


class LowRank(NamedTuple):
    """A matrix (O, I) as `factor` times the product of `up` (O, R) and `down` (R, I)."""

    up: mx.array
    down: mx.array
    factor: float

    def matrix(self) -> mx.array:
        """The matrix in float32."""
        return matmul(self.up.astype(mx.float32), self.down.astype(mx.float32)) * self.factor

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.up.nbytes + self.down.nbytes


class QuantizedLinear(nn.Module):
    """A linear layer whose matrix is stored in `bits` per weight, affine by groups (mx.quantize).

    Every call dequantises it and multiplies: with 32760 tokens an H100 so reaches 770 TFLOP/s, with
    `mx.quantized_matmul` 146. What LoRAs add is kept beside it and summed in float32 after
    dequantising.
    """

    def __init__(self, width: int, out: int, bias: bool, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        self.weight = mx.zeros((out, width * bits // 32), mx.uint32)
        self.scales = mx.zeros((out, width // group_size))
        self.biases = mx.zeros((out, width // group_size))
        if bias:
            self.bias = mx.zeros((out,))
        self._added: list[LowRank] = []  # the underscore keeps it out of the parameters

    def add(self, products: Sequence[LowRank]) -> None:
        """Add products to the matrix from now on."""
        self._added.extend(products)

    @property
    def nbytes(self) -> int:
        """Memory that the quantised matrix takes."""
        return self.weight.nbytes + self.scales.nbytes + self.biases.nbytes

    @property
    def plain_nbytes(self) -> int:
        """Memory that the matrix would take in the dtype of its scales."""
        return self.weight.size * 32 // self.bits * self.scales.itemsize

    def matrix(self) -> mx.array:
        """The matrix (O, I), dequantised, with what was added, in the dtype of the scales."""
        total = mx.dequantize(self.weight, self.scales, self.biases, self.group_size, self.bits)
        if self._added:
            total = total.astype(mx.float32)
            for product in self._added:
                total = total + product.matrix()
        return total.astype(self.scales.dtype)

    def __call__(self, x: mx.array) -> mx.array:
        return linear(x, self.matrix(), self.get("bias"))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, out: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, out)
        self.activation = activation

    def hidden(self, x: mx.array) -> mx.array:
        """What the second layer takes."""
        return self.activation(self.fc1(x), dtype=x.dtype)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.hidden(x))


def patches(x: mx.array, size: tuple[int, int, int]) -> mx.array:
    """Cut a video (C, F, H, W) into patches (L, D), each ordered frame, row, column, channel."""
    channels, (frames, rows, columns) = x.shape[0], grid(x.shape[1:], size)
    x = x.reshape(channels, frames, size[0], rows, size[1], columns, size[2])
    return x.transpose(1, 3, 5, 2, 4, 6, 0).reshape(frames * rows * columns, -1)  # (L, D)


def unpatches(
    tokens: mx.array, counts: tuple[int, int, int], size: tuple[int, int, int]
) -> mx.array:
    """Undo `patches` for a grid of `counts` patches: (L, D) to (C, F, H, W)."""
    x = tokens.reshape(*counts, *size, -1).transpose(6, 0, 3, 1, 4, 2, 5)
    return x.reshape(-1, *(count * side for count, side in zip(counts, size, strict=True)))


def grid(shape: tuple[int, ...], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Count the patches of `size` along frames, rows and columns of a video of (F, H, W)."""
    assert all(side % part == 0 for side, part in zip(shape, size, strict=True)), (shape, size)
    frames, rows, columns = (side // part for side, part in zip(shape, size, strict=True))
    return frames, rows, columns
