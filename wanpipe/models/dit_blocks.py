"""The blocks of the diffusion transformer (DiT), and the streams of tokens that run through them.

Source: wan/modules/model.py, `WanAttentionBlock`, and wan/modules/vace_model.py,
`VaceWanAttentionBlock`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from wanpipe.models import rope
from wanpipe.models.config import DiTConfig
from wanpipe.models.execution import Evaluate, Prefetch, defer_eval
from wanpipe.models.layers import (
    MLP,
    Linear,
    add_norm,
    attend,
    gelu,
    matmul_dtype,
    norm_modulate,
    pad_keys,
    rms_norm,
    split_heads,
)
from wanpipe.models.tuning import ffn_chunk
from wanpipe.sampling.nag import Nag, guide

# keys and values (L, D) of some tokens
Pair = tuple[mx.array, mx.array]
# queries, keys and values (1, N, L, D / N) of the video tokens
QKV = tuple[mx.array, mx.array, mx.array]
# rows (L, D) of all tokens from those that this device computes
Join = Callable[[mx.array], mx.array]


def keep_rows(rows: mx.array) -> mx.array:
    """Return the rows of all tokens where one device computes them all."""
    return rows


class KV(NamedTuple):
    """Keys and values of the text tokens, in I2V of the image tokens, and of the text tokens of a
    negative prompt, which acts by `nag`.
    """

    text: Pair
    image: Pair | None = None
    negative: Pair | None = None
    nag: Nag | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """All keys and values."""
        pairs = (self.text, self.image, self.negative)
        return [array for pair in pairs if pair is not None for array in pair]


@dataclass
class Condition:
    """The tokens that cross-attention attends to, for one prompt and one expert.

    `text` (L, D) and `image` (257 or 514, D) are embedded tokens; the last text token stands for
    all padding tokens up to `text_len`. `negative` is the text of a negative prompt, which acts by
    `nag`. `kv_cache` holds each block's keys and values from the first step on. It skips blocks
    that are loaded again at every step, because loading them takes far longer than computing their
    keys and values.
    """

    text: mx.array
    image: mx.array | None = None
    negative: mx.array | None = None
    nag: Nag | None = None
    kv_cache: dict[int, KV] = field(default_factory=dict)


class SelfAttention(nn.Module):
    """Attention among the video tokens, with rotary positions (`WanSelfAttention`)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, config.eps)
        self.norm_k = nn.RMSNorm(dim, config.eps)

    def qkv(self, x: mx.array, table: rope.Tables, evaluate: Evaluate, join: Join) -> QKV:
        """Compute the queries (1, N, l, D / N) of tokens x, and the keys and values of all tokens,
        (1, N, L, D / N), which `join` gathers if devices share them.
        """
        k = join(self._norm_rotate(self.k(x), self.norm_k, table))
        v = join(self.v(x).reshape(-1, x.shape[-1]))
        k, v = (split_heads(pad_keys(rows), self.heads) for rows in (k, v))
        evaluate(k, v)
        q = split_heads(self._norm_rotate(self.q(x), self.norm_q, table), self.heads)
        evaluate(q)
        return q, k, v

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, evaluate: Evaluate) -> mx.array:
        """Attend among all tokens, and return (1, L, D)."""
        y = attend(q, k, v)
        evaluate(y)
        return self.o(y)

    def _norm_rotate(self, x: mx.array, norm: nn.RMSNorm, table: rope.Tables) -> mx.array:
        rows, width = x.reshape(-1, x.shape[-1]), x.shape[-1] // self.heads  # (L, D)
        return rope.norm_rotate(rows, norm.weight, table, width=width, eps=norm.eps)


class CrossAttention(nn.Module):
    """Attention to text tokens and, in I2V, separately to image tokens (`WanI2VCrossAttention`)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.text_len = config.heads, config.text_len
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, config.eps)
        self.norm_k = nn.RMSNorm(dim, config.eps)
        if config.clip_dim is not None:
            self.k_img = Linear(dim, dim)
            self.v_img = Linear(dim, dim)
            self.norm_k_img = nn.RMSNorm(dim, config.eps)

    def kv(self, condition: Condition) -> KV:
        """Compute keys and values of the tokens of `condition`."""

        def text(tokens: mx.array) -> Pair:
            return rms_norm(self.k(tokens), self.norm_k), self.v(tokens)

        found = KV(text(condition.text), nag=condition.nag)
        if condition.image is not None:
            k = rms_norm(self.k_img(condition.image), self.norm_k_img)
            found = found._replace(image=(k, self.v_img(condition.image)))
        if condition.negative is not None:
            found = found._replace(negative=text(condition.negative))
        return found

    def __call__(self, x: mx.array, kv: KV, evaluate: Evaluate) -> mx.array:
        q = split_heads(rms_norm(self.q(x), self.norm_q), self.heads)
        evaluate(q)
        y = self._attend_text(q, kv.text)
        if kv.negative is not None:
            y = self._guide(y, self._attend_text(q, kv.negative), kv.nag, evaluate)
        if kv.image is not None:
            k, v = (split_heads(rows, self.heads) for rows in kv.image)
            y = y + attend(q, k, v)
        return self.o(y.reshape(x.shape))

    def _attend_text(self, q: mx.array, pair: Pair) -> mx.array:
        """Attend to the tokens of a text and to those that pad it."""
        k, v = (split_heads(pad_last(rows, self.text_len), self.heads) for rows in pair)
        return attend(q, k, v)

    def _guide(
        self, y: mx.array, negative: mx.array, nag: Nag | None, evaluate: Evaluate
    ) -> mx.array:
        """Guide the attention y (1, L, D) away from that to a negative prompt.

        Many tokens are split into chunks, so that float32 arrays of a part are in memory.
        """
        assert nag is not None
        size, parts = ffn_chunk(y.shape[1]), []
        cuts = list(range(size, y.shape[1], size))
        for part, other in zip(*(mx.split(x, cuts, axis=1) for x in (y, negative)), strict=True):
            parts.append(guide(part, other, nag))
            evaluate(parts[-1])
        return mx.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def pad_last(rows: mx.array, length: int) -> mx.array:
    """Pad rows (L, D) to `length` by repeating the last one."""
    missing = length - len(rows)
    if not missing:
        return rows
    return mx.concatenate([rows, mx.broadcast_to(rows[-1:], (missing, rows.shape[1]))])


@dataclass
class Stream:
    """The float32 residual stream x (G, L / G, D) and a pending addition to it.

    The pending addition is concat(parts), rows (L, D), times `gate` (G, 1, D); the next norm adds
    it. A stream is changed in place, so that no caller keeps the old x in memory.
    """

    x: mx.array
    parts: list[mx.array] = field(default_factory=list)
    gate: mx.array | None = None

    def add_norm(
        self, shift: mx.array, scale: mx.array, *, plus_one: bool, eps: float, dtype: mx.Dtype
    ) -> mx.array:
        """Apply the pending addition, and return the norm of x in `dtype` (see `add_norm`)."""
        if not self.parts:
            assert plus_one  # the first norm of a network is modulated
            return norm_modulate(self.x, shift, scale, eps=eps, dtype=dtype)
        self.x, y = add_norm(
            self.x, self.parts, self.gate, shift, scale, plus_one=plus_one, eps=eps, dtype=dtype
        )
        self.parts, self.gate = [], None
        return y

    def add_pending(self, eps: float, dtype: mx.Dtype) -> None:
        """Apply the pending addition."""
        still = mx.zeros((len(self.x), 1, self.x.shape[-1]))
        # the norm is dropped: on CUDA one kernel does both, with the least memory traffic
        self.add_norm(still, still, plus_one=True, eps=eps, dtype=dtype)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward layers (`WanAttentionBlock`)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.modulation = mx.zeros((6, dim))
        self.self_attn = SelfAttention(config)
        self.cross_attn = CrossAttention(config)
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.ffn = MLP(dim, config.ffn_dim, dim, gelu)

    def __call__(
        self,
        stream: Stream,
        time: mx.array,
        table: rope.Tables,
        kv: KV,
        evaluate: Evaluate = defer_eval,
        join: Join = keep_rows,
    ) -> None:
        """Run the block on `stream`, modulated by `time` (G, 6, D).

        The output of the feed-forward layer stays pending; the next norm adds it.
        """
        y = [self.attend_self(stream, time, table, evaluate, join=join)]
        self.attend_text(stream, y, time, kv, evaluate)

    def attend_self(
        self,
        stream: Stream,
        time: mx.array,
        table: rope.Tables,
        evaluate: Evaluate,
        prefetch: Prefetch = lambda: None,
        join: Join = keep_rows,
    ) -> mx.array:
        """Run self-attention, and return the input of cross-attention (G, L / G, D).

        Calls `prefetch` once self-attention is queued.
        """
        shift, scale, gate = mx.split(self.modulation[:3] + time[:, :3], 3, 1)
        y = stream.add_norm(shift, scale, plus_one=True, **self.norm_options)
        evaluate(stream.x, y)
        qkv = self.self_attn.qkv(y, table, evaluate, join)
        del y  # here and below: the name would keep the array in memory
        stream.parts, stream.gate = [self.self_attn(*qkv, evaluate)], gate
        del qkv
        prefetch()
        evaluate(*stream.parts)
        shift, scale = self.norm3.bias, self.norm3.weight
        y = stream.add_norm(shift, scale, plus_one=False, **self.norm_options)
        evaluate(stream.x, y)
        return y

    def attend_text(
        self, stream: Stream, y: list[mx.array], time: mx.array, kv: KV, evaluate: Evaluate
    ) -> None:
        """Run cross-attention of y to `kv`, then the feed-forward layer.

        y comes in a list, which is emptied, so that the caller does not keep it in memory.
        """
        shift, scale, gate = mx.split(self.modulation[3:] + time[:, 3:], 3, 1)
        stream.parts = [self.cross_attn(y.pop(), kv, evaluate)]
        evaluate(*stream.parts)
        z = stream.add_norm(shift, scale, plus_one=True, **self.norm_options)
        evaluate(stream.x, z)
        stream.parts, stream.gate = self._feed_forward(z, evaluate), gate

    @property
    def norm_options(self) -> dict[str, Any]:
        """Epsilon and dtype of the block's norms."""
        return {"eps": self.config.eps, "dtype": matmul_dtype(self.self_attn.q)}

    def _feed_forward(self, y: mx.array, evaluate: Evaluate) -> list[mx.array]:
        """Apply the feed-forward layer to tokens y (G, L / G, D), and return rows (L, D) in parts.

        Many tokens are split into chunks, so that only a part of the hidden layer is in memory.
        """
        rows = y.reshape(-1, y.shape[-1])  # (L, D)
        size, parts = ffn_chunk(len(rows)), []
        for part in mx.split(rows, list(range(size, len(rows), size))):
            hidden = self.ffn.hidden(part)
            evaluate(hidden)
            parts.append(self.ffn.fc2(hidden))
            evaluate(parts[-1])
        return parts


class VaceBlock(Block):
    """A block of VACE's context stream; its hint is added to the stream of the video."""

    def __init__(self, config: DiTConfig, first: bool) -> None:
        super().__init__(config)
        if first:
            self.before_proj = Linear(config.dim, config.dim)
        self.after_proj = Linear(config.dim, config.dim)

    def begin(self, context: mx.array, video: mx.array) -> mx.array:
        """Return the context stream (G, L / G, D), float32, of embedded context and video tokens.

        Only the first VACE block begins one.
        """
        return self.before_proj(context.astype(matmul_dtype(self.before_proj))) + video

    def hint(self, context: Stream) -> mx.array:
        """Return what a finished context stream adds to the stream of the video."""
        return self.after_proj(context.x.astype(matmul_dtype(self.after_proj)))


@dataclass
class ContextStreams:
    """The context streams of VACE, one for each condition, in one forward pass.

    `video` holds the patch-embedded tokens (G, L / G, D) before any block, and `context` those of
    the context; the first VACE block takes both. Hints are added times `scale` (G, 1, D).
    Officially all hints are made first. None depends on the stream that it is added to, so adding
    each right after its block gives the same, and keeps one hint in memory instead of all.
    """

    context: mx.array
    video: mx.array
    scale: mx.array
    streams: list[Stream] = field(default_factory=list)

    def begin(self, block: VaceBlock, count: int) -> None:
        """Begin `count` equal streams with the first VACE block."""
        x = block.begin(self.context, self.video)
        self.streams = [Stream(x) for _ in range(count)]
        del self.context, self.video  # they would stay in memory

    def add_hint(self, block: VaceBlock, number: int, video: Stream, evaluate: Evaluate) -> None:
        """Finish stream `number` after its block; the hint becomes the video's pending addition."""
        context, norm = self.streams[number], block.norm_options
        context.add_pending(**norm)
        hint = block.hint(context)
        video.add_pending(**norm)
        video.parts, video.gate = [hint.reshape(-1, hint.shape[-1])], self.scale
        evaluate(context.x, video.x, hint)
