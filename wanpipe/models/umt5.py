"""The umT5 encoder, run layer by layer so that its weights are never in memory together.

Takes token ids without padding: the official code pads, masks and cuts, which gives the same rows.
Follows wan/modules/t5.py (T5Encoder) of the official code.
"""

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from wanpipe.models.config import T5Config
from wanpipe.models.layers import (
    Linear,
    attend,
    fused,
    matmul,
    matmul_dtype,
    rms_norm,
    split_heads,
    tanh_gelu,
)

EPS = 1e-6
MAX_DISTANCE = 128  # tokens; farther apart, all positions share one bucket


@fused
def gated(gate: mx.array, x: mx.array) -> mx.array:
    """Multiply x by the tanh form of GELU of `gate`."""
    return tanh_gelu(gate, dtype=mx.float32) * x


def buckets(length: int, count: int) -> npt.NDArray[np.int32]:
    """Bucket (2 L - 1) of every distance of a key from a query, from L - 1 before it to L - 1 after
    it; half of `count` are for later keys.

    Exact for near positions, then logarithmic, cut towards zero in float32 as the official code
    has it (T5RelativeEmbedding).
    """
    offset = np.arange(1 - length, length)  # key minus query
    half = count // 2
    exact = half // 2
    distance = np.maximum(np.abs(offset), 1).astype(np.float32)
    span = np.float32(math.log(MAX_DISTANCE / exact))
    beyond = np.log(distance / np.float32(exact)) / span * np.float32(half - exact)
    far = np.minimum(exact + beyond.astype(np.int32), half - 1)
    bucket: npt.NDArray[np.int64] = np.where(distance < exact, np.abs(offset), far)
    return (bucket + half * (offset > 0)).astype(np.int32)


def places(length: int, count: int) -> mx.array:
    """For every distance (2 L - 1, `count`): one at its bucket, else zeros."""
    return mx.array(np.eye(count, dtype=np.float32)[buckets(length, count)])


def biases(table: mx.array, place: mx.array) -> mx.array:
    """Biases (N, L, L) of queries and keys from the `table` (B, N) of their distances' buckets.

    A product with `place` looks them up: for an index CUDA would compile a kernel, for seconds.
    """
    rows = matmul(place.astype(table.dtype), table).T  # (N, 2 L - 1)
    heads, width = rows.shape
    length = (width + 1) // 2
    # the last query's distances begin a row, and every query before it begins one place later
    turned = mx.as_strided(rows, (heads, length, length), (width, 1, 1))
    return mx.contiguous(turned[:, ::-1])


class Attention(nn.Module):
    """Attention without scaling, biased by relative positions; scores and softmax in float32."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.heads = config.heads
        dim, width = config.dim, config.attention_dim
        self.q, self.k, self.v = (Linear(dim, width, bias=False) for _ in range(3))
        self.o = Linear(width, dim, bias=False)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        q, k, v = (
            split_heads(layer(x).astype(mx.float32), self.heads)
            for layer in (self.q, self.k, self.v)
        )
        y = attend(q, k, v, scale=1.0, mask=bias).squeeze(0)
        return self.o(y.astype(x.dtype))


class FeedForward(nn.Module):
    """Two linear layers with a gate between them."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gate = Linear(config.dim, config.ffn_dim, bias=False)
        self.fc1 = Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = Linear(config.ffn_dim, config.dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(gated(self.gate(x), self.fc1(x), dtype=x.dtype))


class Block(nn.Module):
    """Attention and feed forward around a float32 residual stream; each has a table of biases."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.dim, EPS)
        self.attn = Attention(config)
        self.norm2 = nn.RMSNorm(config.dim, EPS)
        self.ffn = FeedForward(config)
        self.position_bias = mx.zeros((config.buckets, config.heads))

    def __call__(self, x: mx.array, place: mx.array) -> mx.array:
        """Advance x (L, D), float32; `place` is that of `places`."""
        dtype = matmul_dtype(self.attn.q)
        bias = biases(self.position_bias, place)
        x = x + self.attn(rms_norm(x, self.norm1).astype(dtype), bias)
        return x + self.ffn(rms_norm(x, self.norm2).astype(dtype))


class T5(nn.Module):
    """The whole encoder: it names the parameters; `encode` runs it without holding them."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = [Block(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.dim, EPS)

    def __call__(self, ids: Sequence[int]) -> mx.array:
        """Encode token ids: rows (L, D), float32."""
        x = self.token_embedding(mx.array(list(ids))).astype(mx.float32)
        place = places(len(ids), self.config.buckets)
        for block in self.blocks:
            x = block(x, place)
        return rms_norm(x, self.norm)
