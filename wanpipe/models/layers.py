"""Layers that the transformers share.

Norms and elementwise operations run in float32, matrix products and attention in the dtype of the
weights. Knows no model.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn

from wanpipe.backend import blas, cpu_kernels, cuda_kernels
from wanpipe.backend.device import is_cuda, is_exact, is_gpu, is_metal

# Keys per tile of cuDNN's attention on an H100: with whole tiles it is 7 % faster at 32760 tokens.
KEY_TILE = 128
# `pad_keys` needs at least this many keys, and this many keys per mean.
MIN_KEYS, MIN_GROUP = 8192, 200

# Operations of one attention kernel on Metal, 2 s on an M1: macOS ends a kernel that keeps the GPU
# from the display for seconds (ml-explore/mlx#3267). Larger attention runs in groups of heads.
MAX_ATTENTION_FLOPS = 5e12


class Activation(Protocol):
    """An elementwise function of one array that returns `dtype`."""

    def __call__(self, x: mx.array, /, *, dtype: mx.Dtype) -> mx.array: ...


class Fused(Protocol):
    """An elementwise function that takes any dtype, computes in float32 and returns `dtype`."""

    def __call__(self, *arrays: mx.array, dtype: mx.Dtype) -> mx.array: ...


def fused(function: Callable[..., mx.array]) -> Fused:
    """Compile an elementwise float32 `function` and the casts around it to one Metal kernel."""

    def with_casts(dtype: mx.Dtype) -> Callable[..., mx.array]:
        def call(*arrays: mx.array) -> mx.array:
            return function(*(array.astype(mx.float32) for array in arrays)).astype(dtype)

        return call

    @cache
    def compiled(dtype: mx.Dtype) -> Callable[..., mx.array]:
        return mx.compile(with_casts(dtype), shapeless=True)

    @wraps(function)
    def choose(*arrays: mx.array, dtype: mx.Dtype) -> mx.array:
        # elsewhere compiling takes seconds: CUDA has `cuda_kernels` for large arrays, and the CPU
        # would need a C++ compiler on the user's machine
        return (compiled(dtype) if is_metal() else with_casts(dtype))(*arrays)

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
    """Apply the tanh form of GELU to `x`, which must have `dtype`."""
    if is_cuda() and cuda_kernels.has_whole_vectors(x):
        return cuda_kernels.gelu(x)  # MLX's tanh takes six times as long as the memory access
    if not is_gpu():
        return cpu_kernels.gelu(x)
    return tanh_gelu(x, dtype=dtype)


def norm_modulate(
    x: mx.array, shift: mx.array, scale: mx.array, *, eps: float, dtype: mx.Dtype
) -> mx.array:
    """Normalize the stream x (G, L / G, D), modulate by (G, 1, D), and return `dtype`."""
    if not is_gpu():
        return cpu_kernels.norm_modulate(x, shift, scale, eps=eps, dtype=dtype)
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
    """Compute x += gate * concat(parts), and return x (G, L / G, D) and its layer norm in `dtype`.

    All parts but the last have the same number of rows; `gate` (G, 1, D) is optional. With
    `plus_one`, the norm is modulated by `shift` and `scale` (G, 1, D); otherwise they are its bias
    and weight (D).
    """
    if not is_metal():
        kernel = cuda_kernels.add_norm if is_cuda() else cpu_kernels.add_norm
        return kernel(x, parts, gate, shift, scale, plus_one=plus_one, eps=eps, dtype=dtype)
    y = (mx.concatenate(parts) if len(parts) > 1 else parts[0]).reshape(x.shape)
    x = add(x, y, dtype=x.dtype) if gate is None else add_gated(x, y, gate, dtype=x.dtype)
    if plus_one:
        return x, norm_modulate(x, shift, scale, eps=eps, dtype=dtype)
    return x, mx.fast.layer_norm(x, scale, shift, eps).astype(dtype)


def matmul_dtype(linear: nn.Module) -> mx.Dtype:
    """Return the dtype that a linear layer, quantized or not, expects of its input."""
    stored: mx.array = linear.scales if "scales" in linear else linear.weight
    return stored.dtype


def layer_norm(x: mx.array, norm: nn.LayerNorm, dtype: mx.Dtype) -> mx.array:
    """Apply `norm` in float32, and return `dtype`."""
    x = x.astype(mx.float32)
    return mx.fast.layer_norm(x, norm.weight, norm.bias, norm.eps).astype(dtype)


def rms_norm(x: mx.array, norm: nn.RMSNorm) -> mx.array:
    """Apply `norm` to the last axis in float32, and return the dtype of `x`."""
    if not is_gpu():
        return cpu_kernels.rms_norm(x, norm.weight, norm.eps)
    # a float32 weight would promote the result, and all that follows, to float32
    return mx.fast.rms_norm(x, norm.weight.astype(x.dtype), norm.eps)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """View (..., L, D) as (1, N, L, D / N); leading axes are merged into L."""
    return x.reshape(1, -1, heads, x.shape[-1] // heads).transpose(0, 2, 1, 3)  # (B, N, L, D / N)


def append_group_means(x: mx.array, groups: int) -> mx.array:
    """Append to rows x (L, D) the mean of each of `groups` groups of consecutive rows."""
    if is_cuda():
        return cuda_kernels.append_group_means(x, groups)
    parts = mx.split(x.astype(mx.float32), [len(x) * n // groups for n in range(1, groups)])
    return mx.concatenate([x, *(part.mean(0, keepdims=True).astype(x.dtype) for part in parts)])


def pad_keys(x: mx.array) -> mx.array:
    """Pad keys or values x (L, D) to a multiple of KEY_TILE with group means, if that is faster.

    Padding changes attention by less than the rounding of its dtype. By Jensen's inequality, the
    mean of a group's keys gets at most the mean of their softmax weights. So n means of equal
    groups get at most n / L of the weight, and move a result by at most that fraction of its
    distance from the mean of the values. If all weights are equal, that distance is zero.
    `is_exact` turns padding off.
    """
    missing = -len(x) % KEY_TILE
    is_half = x.itemsize == 2
    is_long = len(x) >= max(MIN_KEYS, MIN_GROUP * missing)
    is_faster = is_cuda() and cuda_kernels.has_whole_vectors(x) and is_half and is_long
    return append_group_means(x, missing) if is_faster and missing and not is_exact() else x


def attend(
    q: mx.array, k: mx.array, v: mx.array, scale: float | None = None, mask: mx.array | None = None
) -> mx.array:
    """Attend with q, k and v (B, N, L, D), and merge the heads to (B, L, N * D).

    `scale` defaults to 1 / sqrt(D); `mask` (N, L, L) is added to the scores.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not is_gpu():
        return blas.attend(q, k, v, scale, mask)
    B, N, L, D = q.shape
    flops = 4 * B * N * L * k.shape[2] * D
    parts = min(N, math.ceil(flops / MAX_ATTENTION_FLOPS)) if is_metal() else 1
    if parts == 1:
        return merge_heads(mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask))
    assert mask is None
    cuts = [N * part // parts for part in range(1, parts)]
    heads = zip(*(mx.split(x, cuts, axis=1) for x in (q, k, v)), strict=True)
    attended = [mx.fast.scaled_dot_product_attention(*one, scale=scale) for one in heads]
    return mx.concatenate([merge_heads(x) for x in attended], axis=2)


def merge_heads(x: mx.array) -> mx.array:
    """Merge the heads of (B, N, L, D) to (B, L, N * D)."""
    return x.transpose(0, 2, 1, 3).flatten(2)  # (B, L, N * D)


def matmul(a: mx.array, b: mx.array) -> mx.array:
    """Multiply matrices: by MLX on a GPU, by NumPy on the CPU."""
    return a @ b if is_gpu() else blas.matmul(a, b)


def linear(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """Multiply x (..., I) by the transpose of `weight` (O, I), and add the optional `bias`."""
    if not is_gpu():
        return blas.linear(x, weight, bias)
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


class Linear(nn.Linear):
    """MLX's linear layer with the `matmul` of the backend."""

    def __init__(self, width: int, out: int, bias: bool = True) -> None:
        # zeros, because weights come from a file. MLX's own layer draws them at random, and each
        # draw stays in memory as the origin of the next random key: 120 kB per network
        nn.Module.__init__(self)
        self.weight = mx.zeros((out, width))
        if bias:
            self.bias = mx.zeros((out,))

    def __call__(self, x: mx.array) -> mx.array:
        return linear(x, self.weight, self.get("bias"))


class LowRank(NamedTuple):
    """A matrix (O, I) of low rank: `factor` times the product of `up` (O, rank) and `down`."""

    up: mx.array
    down: mx.array
    factor: float

    def matrix(self) -> mx.array:
        """Compute the matrix in float32."""
        return matmul(self.up.astype(mx.float32), self.down.astype(mx.float32)) * self.factor

    @property
    def nbytes(self) -> int:
        """Bytes of both factors."""
        return self.up.nbytes + self.down.nbytes


class QuantizedLinear(nn.Module):
    """A linear layer whose matrix is stored in `bits` per weight, affine by group (mx.quantize).

    Each call dequantizes the matrix and multiplies: with 32760 tokens, an H100 reaches 770 TFLOP/s
    this way, and 146 with `mx.quantized_matmul`. LoRA products are stored separately, and added in
    float32 after dequantizing.
    """

    def __init__(self, width: int, out: int, bias: bool, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        self.weight = mx.zeros((out, width * bits // 32), mx.uint32)
        self.scales = mx.zeros((out, width // group_size))
        self.biases = mx.zeros((out, width // group_size))
        if bias:
            self.bias = mx.zeros((out,))
        self._added: list[LowRank] = []  # the underscore: not a parameter

    def add(self, products: Sequence[LowRank]) -> None:
        """Add `products` to the matrix of all later calls."""
        self._added.extend(products)

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized matrix."""
        return self.weight.nbytes + self.scales.nbytes + self.biases.nbytes

    @property
    def plain_nbytes(self) -> int:
        """Bytes of the matrix if it were stored in the dtype of its scales."""
        return self.weight.size * 32 // self.bits * self.scales.itemsize

    def matrix(self) -> mx.array:
        """Dequantize the matrix (O, I) in the dtype of the scales, LoRA products included."""
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
        """Compute the hidden layer, the input of `fc2`."""
        return self.activation(self.fc1(x), dtype=x.dtype)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.hidden(x))


def to_patches(x: mx.array, size: tuple[int, int, int]) -> mx.array:
    """Split a video (C, F, H, W) into patches (L, D), each ordered frame, row, column, channel."""
    C, (F, H, W) = x.shape[0], grid(x.shape[1:], size)  # F, H and W count patches
    x = x.reshape(C, F, size[0], H, size[1], W, size[2])
    return x.transpose(1, 3, 5, 2, 4, 6, 0).reshape(F * H * W, -1)  # (L, D)


def from_patches(
    tokens: mx.array, counts: tuple[int, int, int], size: tuple[int, int, int]
) -> mx.array:
    """Join a grid of `counts` patches (L, D) to a video (C, F, H, W); inverts `to_patches`."""
    x = tokens.reshape(*counts, *size, -1).transpose(6, 0, 3, 1, 4, 2, 5)
    # (C, F, H, W)
    return x.reshape(-1, *(count * side for count, side in zip(counts, size, strict=True)))


def grid(shape: tuple[int, ...], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the number of patches of `size` along each axis of a video (F, H, W)."""
    assert all(side % part == 0 for side, part in zip(shape, size, strict=True)), (shape, size)
    frames, rows, columns = (side // part for side, part in zip(shape, size, strict=True))
    return frames, rows, columns
