"""The diffusion transformer (DiT) of Wan2.1 and Wan2.2, one class for all variants.

Takes one video at a time, without padding. Source: wan/modules/model.py, `WanModel`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from msgspec import UNSET

from wanpipe.models import rope
from wanpipe.models.config import DiTConfig
from wanpipe.models.execution import BoundedEval, Evaluate, Prefetch, defer_eval, run_blocks
from wanpipe.models.layers import (
    MLP,
    Linear,
    add_norm,
    attend,
    from_patches,
    gelu,
    gelu_exact,
    grid,
    layer_norm,
    matmul_dtype,
    norm_modulate,
    pad_keys,
    rms_norm,
    silu,
    split_heads,
    to_patches,
)
from wanpipe.models.tuning import eval_depth, ffn_chunk

# keys and values (L, D) of the text tokens, then of the image tokens
KV = tuple[mx.array, ...]
# queries, keys and values (1, N, L, D / N) of the video tokens
QKV = tuple[mx.array, mx.array, mx.array]


@dataclass
class Condition:
    """The tokens that cross-attention attends to, for one prompt and one expert.

    `text` (L, D) and `image` (257 or 514, D) are embedded tokens; the last text token stands for
    all padding tokens up to `text_len`. `kv_cache` holds each block's keys and values from the
    first step on. It skips blocks that are loaded again at every step, because loading them takes
    far longer than computing their keys and values.
    """

    text: mx.array
    image: mx.array | None = None
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

    def qkv(self, x: mx.array, table: rope.Tables, evaluate: Evaluate) -> QKV:
        """Compute queries, keys and values (1, N, L, D / N) of tokens x."""
        q = split_heads(self._norm_rotate(self.q(x), self.norm_q, table), self.heads)
        evaluate(q)
        k = split_heads(pad_keys(self._norm_rotate(self.k(x), self.norm_k, table)), self.heads)
        v = split_heads(pad_keys(self.v(x).reshape(-1, x.shape[-1])), self.heads)
        evaluate(k, v)
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
        pairs = [(self.norm_k, self.k, self.v, condition.text)]
        if condition.image is not None:
            pairs.append((self.norm_k_img, self.k_img, self.v_img, condition.image))
        return tuple(
            x for norm, k, v, tokens in pairs for x in (rms_norm(k(tokens), norm), v(tokens))
        )

    def __call__(self, x: mx.array, kv: KV, evaluate: Evaluate) -> mx.array:
        q = split_heads(rms_norm(self.q(x), self.norm_q), self.heads)
        evaluate(q)
        rows = [*(pad_last(text, self.text_len) for text in kv[:2]), *kv[2:]]
        k, v, *image = (split_heads(one, self.heads) for one in rows)
        y = attend(q, k, v)
        if image:
            k_img, v_img = image
            y = y + attend(q, k_img, v_img)
        return self.o(y.reshape(x.shape))


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
    ) -> None:
        """Run the block on `stream`, modulated by `time` (G, 6, D).

        The output of the feed-forward layer stays pending; the next norm adds it.
        """
        y = [self.attend_self(stream, time, table, evaluate)]
        self.attend_text(stream, y, time, kv, evaluate)

    def attend_self(
        self,
        stream: Stream,
        time: mx.array,
        table: rope.Tables,
        evaluate: Evaluate,
        prefetch: Prefetch = lambda: None,
    ) -> mx.array:
        """Run self-attention, and return the input of cross-attention (G, L / G, D).

        Calls `prefetch` once self-attention is queued.
        """
        shift, scale, gate = mx.split(self.modulation[:3] + time[:, :3], 3, 1)
        y = stream.add_norm(shift, scale, plus_one=True, **self._norm_options)
        evaluate(stream.x, y)
        qkv = self.self_attn.qkv(y, table, evaluate)
        del y  # here and below: the name would keep the array in memory
        stream.parts, stream.gate = [self.self_attn(*qkv, evaluate)], gate
        del qkv
        prefetch()
        evaluate(*stream.parts)
        shift, scale = self.norm3.bias, self.norm3.weight
        y = stream.add_norm(shift, scale, plus_one=False, **self._norm_options)
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
        z = stream.add_norm(shift, scale, plus_one=True, **self._norm_options)
        evaluate(stream.x, z)
        stream.parts, stream.gate = self._feed_forward(z, evaluate), gate

    @property
    def _norm_options(self) -> dict[str, Any]:
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


class Head(nn.Module):
    """The last norm, modulated by the time embedding, and the projection, in float32 (`Head`)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = mx.zeros((2, config.dim))
        self.linear = Linear(config.dim, int(np.prod(config.patch)) * config.out_dim)

    def __call__(self, stream: Stream, time: mx.array) -> mx.array:
        shift, scale = mx.split(self.modulation + time[:, None], 2, 1)  # (G, 1, D) each
        x = stream.add_norm(shift, scale, plus_one=True, eps=self.eps, dtype=mx.float32)
        return self.linear(x)


class ImageEmbedding(nn.Module):
    """Project CLIP tokens to the width of the transformer (`MLPProj`)."""

    def __init__(self, config: DiTConfig, width: int) -> None:
        super().__init__()
        if config.clip_positions is not UNSET:
            self.pos_embedding = mx.zeros((config.clip_positions, width))
        self.norm1 = nn.LayerNorm(width, 1e-5)
        self.fc1 = Linear(width, width)
        self.fc2 = Linear(width, config.dim)
        self.norm2 = nn.LayerNorm(config.dim, 1e-5)

    def __call__(self, x: mx.array) -> mx.array:
        if "pos_embedding" in self:
            x = x + self.pos_embedding
        x = layer_norm(x, self.norm1, matmul_dtype(self.fc1))
        x = self.fc2(gelu_exact(self.fc1(x), dtype=x.dtype))
        return layer_norm(x, self.norm2, x.dtype)


def sinusoid(timesteps: Sequence[float], width: int) -> mx.array:
    """Embed timesteps as cosines, then sines (G, width), in float64 (`sinusoidal_embedding_1d`)."""
    half = width // 2
    frequencies = 10000.0 ** -(np.arange(half) / half)
    phase = np.outer(np.asarray(timesteps, dtype=np.float64), frequencies)
    return mx.array(np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32))


class DiT(nn.Module):
    """One expert: predict velocities from a noisy latent, its timestep and conditions.

    `blocks` may be any iterable of blocks: a list, or one that reads blocks from disk on demand.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.patch_embedding = Linear(int(np.prod(config.patch)) * config.in_dim, dim)
        self.text_embedding = MLP(config.text_dim, dim, dim, gelu)
        self.time_embedding = MLP(config.freq_dim, dim, dim, silu)
        self.time_projection = Linear(dim, 6 * dim)
        self.blocks = [Block(config) for _ in range(config.layers)]
        self.head = Head(config)
        if config.clip_dim is not None:
            self.img_emb = ImageEmbedding(config, config.clip_dim)

    def condition(self, text: mx.array, clip: mx.array | None = None) -> Condition:
        """Embed a prompt (L, text_dim) and, in Wan2.1 I2V, CLIP tokens (257 or 514, clip_dim).

        The official code pads the text with zero rows to `text_len`, and attends to them without a
        mask. They are all equal, so one is embedded here; attention repeats it.
        """
        missing = self.config.text_len - text.shape[0]
        assert missing >= 0 and (0 if clip is None else len(clip)) == self.config.clip_tokens
        padding = [(0, min(missing, 1)), (0, 0)]
        padded = mx.pad(text.astype(matmul_dtype(self.text_embedding.fc1)), padding)
        return Condition(self.text_embedding(padded), None if clip is None else self.img_emb(clip))

    def __call__(
        self,
        x: mx.array,
        timesteps: Sequence[float],
        conditions: Sequence[Condition],
        y: mx.array | None = None,
        *,
        lazy: bool = False,
    ) -> list[mx.array]:
        """Predict the velocity (out_dim, F, H, W), float32, of latent x under each condition.

        x is (C, F, H, W); `y` are channels appended to it. Pass one timestep, or one per latent
        frame. All conditions run through a block before the next block. `lazy` leaves all
        evaluation to the caller.
        """
        time, modulation = self.embed_time(timesteps)
        counts = grid(x.shape[1:], self.config.patch)
        assert len(timesteps) in (1, counts[0]), (len(timesteps), counts)
        tokens = self.embed_video(x, y).reshape(len(timesteps), -1, self.config.dim)
        table = rope.tables(counts, self.config.dim // self.config.heads)
        streams = [Stream(tokens) for _ in conditions]
        depth = eval_depth(tokens.size // self.config.dim, self.config.dim)
        evaluate = defer_eval if lazy else BoundedEval(depth)
        del tokens  # the streams drop it with their first change
        self._run_blocks(streams, conditions, modulation, table, evaluate)
        velocities = []
        for stream in streams:
            values = self.head(stream, time)
            velocities.append(from_patches(values, counts, self.config.patch))
            evaluate(velocities[-1])
        return velocities

    def _run_blocks(
        self,
        streams: Sequence[Stream],
        conditions: Sequence[Condition],
        time: mx.array,
        table: rope.Tables,
        evaluate: Evaluate,
    ) -> None:
        """Run identical streams through all blocks, each with its condition."""
        shared: list[mx.array] = []

        def attend_self(block: Block, index: int, number: int, prefetch: Prefetch) -> mx.array:
            # the streams are identical until the first cross-attention: compute that part once
            if index > 0:
                return block.attend_self(streams[number], time, table, evaluate, prefetch)
            if number == 0:
                y = block.attend_self(streams[0], time, table, evaluate, prefetch)
                shared.extend([y] * len(streams))
                for stream in streams:
                    stream.x = streams[0].x
            return shared.pop()

        def step(index: int, block: Block, number: int, prefetch: Prefetch) -> None:
            kv = conditions[number].kv_cache.get(index)
            if kv is None:
                kv = block.cross_attn.kv(conditions[number])
                evaluate(*kv)
                if isinstance(self.blocks, list):
                    conditions[number].kv_cache[index] = kv
            y = [attend_self(block, index, number, prefetch)]
            block.attend_text(streams[number], y, time, kv, evaluate)

        run_blocks(self.blocks, len(streams), step)

    def embed_time(self, timesteps: Sequence[float]) -> tuple[mx.array, mx.array]:
        """Return the time embedding (G, D) and its projection (G, 6, D), float32."""
        time = self.time_embedding(sinusoid(timesteps, self.config.freq_dim))
        projected = self.time_projection(silu(time, dtype=mx.float32))
        return time, projected.reshape(len(timesteps), 6, -1)  # (G, 6, D)

    def embed_video(self, x: mx.array, y: mx.array | None = None) -> mx.array:
        """Embed the patches of x and y as tokens (L, D), float32, ordered frame, row, column."""
        video = x if y is None else mx.concatenate([x, y])
        assert video.shape[0] == self.config.in_dim, (video.shape, self.config.in_dim)
        return self.patch_embedding(to_patches(video.astype(mx.float32), self.config.patch))
