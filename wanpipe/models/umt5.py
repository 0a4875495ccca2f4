"""The umT5 text encoder.

Takes token ids without padding. The official code pads, masks and trims, with the same result.
Source: wan/modules/t5.py, `T5Encoder`.
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
MAX_DISTANCE = 128  # tokens; all larger distances share one bucket


@fused
def gated(gate: mx.array, x: mx.array) -> mx.array:
    """Multiply x by GELU (tanh form) of `gate`."""
    return tanh_gelu(gate, dtype=mx.float32) * x


def buckets(length: int, count: int) -> npt.NDArray[np.int32]:
    """Return the bucket (2 L - 1) of each distance from query to key, 1 - L to L - 1.

    Half of the `count` buckets are for later keys. Near distances have a bucket each; farther ones
    share logarithmic buckets, truncated in float32. Source: `T5RelativeEmbedding`.
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


def one_hot_buckets(length: int, count: int) -> mx.array:
    """Return the buckets of all distances as a one-hot matrix (2 L - 1, `count`)."""
    return mx.array(np.eye(count, dtype=np.float32)[buckets(length, count)])


def position_bias(table: mx.array, one_hot: mx.array) -> mx.array:
    """Return the attention bias (N, L, L) from the `table` (buckets, N) of an attention layer.

    Looks values up by a matmul with `one_hot`: for an index, CUDA would take seconds to compile a
    kernel.
    """
    rows = matmul(one_hot.astype(table.dtype), table).T  # (N, 2 L - 1)
    heads, width = rows.shape
    length = (width + 1) // 2
    # the last query reads a row from its start, and each earlier query starts one value later
    reversed_bias = mx.as_strided(rows, (heads, length, length), (width, 1, 1))
    return mx.contiguous(reversed_bias[:, ::-1])


class Attention(nn.Module):
    """Unscaled attention with a position bias; scores and softmax are float32 (`T5Attention`)."""

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
    """A gated feed-forward layer (`T5FeedForward`)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gate = Linear(config.dim, config.ffn_dim, bias=False)
        self.fc1 = Linear(config.dim, config.ffn_dim, bias=False)
        self.fc2 = Linear(config.ffn_dim, config.dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(gated(self.gate(x), self.fc1(x), dtype=x.dtype))


class Block(nn.Module):
    """Attention and feed-forward on a float32 stream (`T5SelfAttention`).

    Each block has its own table of position biases.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.dim, EPS)
        self.attn = Attention(config)
        self.norm2 = nn.RMSNorm(config.dim, EPS)
        self.ffn = FeedForward(config)
        self.position_bias = mx.zeros((config.buckets, config.heads))

    def __call__(self, x: mx.array, one_hot: mx.array) -> mx.array:
        """Run the block on x (L, D), float32; `one_hot` comes from `one_hot_buckets`."""
        dtype = matmul_dtype(self.attn.q)
        bias = position_bias(self.position_bias, one_hot)
        x = x + self.attn(rms_norm(x, self.norm1).astype(dtype), bias)
        return x + self.ffn(rms_norm(x, self.norm2).astype(dtype))


class T5(nn.Module):
    """The whole encoder. To save memory, a caller can run its blocks one at a time."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab, config.dim)
        self.blocks = [Block(config) for _ in range(config.layers)]
        self.norm = nn.RMSNorm(config.dim, EPS)

    def __call__(self, ids: Sequence[int]) -> mx.array:
        """Encode token ids to rows (L, D), float32."""
        x = self.token_embedding(mx.array(list(ids))).astype(mx.float32)
        one_hot = one_hot_buckets(len(ids), self.config.buckets)
        for block in self.blocks:
            x = block(x, one_hot)
        return rms_norm(x, self.norm)
