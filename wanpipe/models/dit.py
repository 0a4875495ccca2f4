"""The diffusion transformer of Wan2.1 and Wan2.2, one class for every variant.

One video at a time, never padded. Follows wan/modules/model.py (WanModel) of the official code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from wanpipe.models import rope
from wanpipe.models.blocks import Pace, Paced, through, unpaced
from wanpipe.models.config import DiTConfig
from wanpipe.models.layers import (
    MLP,
    Linear,
    add_norm,
    attend,
    evened,
    gelu,
    gelu_exact,
    grid,
    layer_norm,
    matmul_dtype,
    norm_modulate,
    patches,
    rms_norm,
    silu,
    split_heads,
    unpatches,
)

# keys and values (L, D) of the text, then those of the image
KeysValues = tuple[mx.array, ...]
# queries, keys and values (1, N, L, D / N) of the video's tokens
Heads = tuple[mx.array, mx.array, mx.array]


@dataclass
class Condition:
    """What cross attention looks at, for one prompt and one expert.

    `text` (L, D) and `image` (257, D) are embedded tokens; the last of the text's stands for all
    that follow it, up to `text_len`. Each block's keys and values are made when the block first
    meets them and kept, so later steps reuse them; not those of a block that is read again at every
    step, which takes far longer.
    """

    text: mx.array
    image: mx.array | None = None
    kept: dict[int, KeysValues] = field(default_factory=dict)


class SelfAttention(nn.Module):
    """Attention among the video's tokens, with positions turned into queries and keys."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, config.eps)
        self.norm_k = nn.RMSNorm(dim, config.eps)

    def heads_of(self, x: mx.array, table: rope.Tables, pace: Pace) -> Heads:
        """Queries, keys and values (1, N, L, D / N) of tokens x."""
        q = split_heads(self._turned(self.q(x), self.norm_q, table), self.heads)
        pace(q)
        k = split_heads(evened(self._turned(self.k(x), self.norm_k, table)), self.heads)
        v = split_heads(evened(self.v(x).reshape(-1, x.shape[-1])), self.heads)
        pace(k, v)
        return q, k, v

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, pace: Pace) -> mx.array:
        """Attend among all tokens: (1, L, D)."""
        y = attend(q, k, v)
        pace(y)
        return self.o(y)

    def _turned(self, x: mx.array, norm: nn.RMSNorm, table: rope.Tables) -> mx.array:
        rows, width = x.reshape(-1, x.shape[-1]), x.shape[-1] // self.heads
        return rope.norm_rotate(rows, norm.weight, table, width=width, eps=norm.eps)


class CrossAttention(nn.Module):
    """Attention to text and, in Wan2.1 I2V, to image tokens, which have keys of their own."""

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

    def keys_values(self, condition: Condition) -> KeysValues:
        """Keys and values of the condition's tokens."""
        pairs = [(self.norm_k, self.k, self.v, condition.text)]
        if condition.image is not None:
            pairs.append((self.norm_k_img, self.k_img, self.v_img, condition.image))
        return tuple(
            x for norm, k, v, tokens in pairs for x in (rms_norm(k(tokens), norm), v(tokens))
        )

    def __call__(self, x: mx.array, kept: KeysValues, pace: Pace) -> mx.array:
        q = split_heads(rms_norm(self.q(x), self.norm_q), self.heads)
        pace(q)
        rows = [*(lengthened(text, self.text_len) for text in kept[:2]), *kept[2:]]
        k, v, *image = (split_heads(one, self.heads) for one in rows)
        y = attend(q, k, v)
        if image:
            k_img, v_img = image
            y = y + attend(q, k_img, v_img)
        return self.o(y.reshape(x.shape))


def lengthened(rows: mx.array, length: int) -> mx.array:
    """Repeat the last of rows (L, D) until there are `length`."""
    missing = length - len(rows)
    if not missing:
        return rows
    return mx.concatenate([rows, mx.broadcast_to(rows[-1:], (missing, rows.shape[1]))])


@dataclass
class Stream:
    """The residual stream x (G, L / G, D), float32, of G groups of tokens that share a timestep,
    and what the next norm adds to it: rows (L, D) in parts that follow one another, times `gate`
    (G, 1, D).

    Changed in place, so that nobody holds what it was.
    """

    x: mx.array
    parts: list[mx.array] = field(default_factory=list)
    gate: mx.array | None = None

    def normed(
        self, shift: mx.array, scale: mx.array, *, plus_one: bool, eps: float, dtype: mx.Dtype
    ) -> mx.array:
        """Add what is to be added, and return the norm of x in `dtype` (see `add_norm`)."""
        if not self.parts:
            assert plus_one  # the first norm of all is a modulated one
            return norm_modulate(self.x, shift, scale, eps=eps, dtype=dtype)
        self.x, y = add_norm(
            self.x, self.parts, self.gate, shift, scale, plus_one=plus_one, eps=eps, dtype=dtype
        )
        self.parts, self.gate = [], None
        return y


class Block(nn.Module):
    """Self attention, cross attention and feed forward around a float32 residual stream."""

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
        kept: KeysValues,
        pace: Pace = unpaced,
    ) -> None:
        """Advance a stream by `time` (G, 6, D); the next norm adds what feeding forward gave."""
        y = [self.attend_self(stream, time, table, pace)]
        self.attend_text(stream, y, time, kept, pace)

    def attend_self(
        self,
        stream: Stream,
        time: mx.array,
        table: rope.Tables,
        pace: Pace,
        ask: Callable[[], object] = lambda: None,
    ) -> mx.array:
        """Attend among the tokens, and return what cross attention takes (G, L / G, D); `ask` while
        that is under way.
        """
        shift, scale, gate = mx.split(self.modulation[:3] + time[:, :3], 3, 1)
        y = stream.normed(shift, scale, plus_one=True, **self._like)
        pace(stream.x, y)
        heads = self.self_attn.heads_of(y, table, pace)
        del y
        stream.parts, stream.gate = [self.self_attn(*heads, pace)], gate
        del heads
        ask()
        pace(*stream.parts)
        y = stream.normed(self.norm3.bias, self.norm3.weight, plus_one=False, **self._like)
        pace(stream.x, y)
        return y

    def attend_text(
        self,
        stream: Stream,
        y: list[mx.array],
        time: mx.array,
        kept: KeysValues,
        pace: Pace,
    ) -> None:
        """Attend with y, taken out of its list, to what is kept of the text, and feed forward."""
        shift, scale, gate = mx.split(self.modulation[3:] + time[:, 3:], 3, 1)
        stream.parts = [self.cross_attn(y.pop(), kept, pace)]
        pace(*stream.parts)
        fed = stream.normed(shift, scale, plus_one=True, **self._like)
        pace(stream.x, fed)
        stream.parts, stream.gate = self._fed_forward(fed, pace), gate

    @property
    def _like(self) -> dict[str, Any]:
        return {"eps": self.config.eps, "dtype": matmul_dtype(self.self_attn.q)}

    def _fed_forward(self, y: mx.array, pace: Pace) -> list[mx.array]:
        """Feed forward tokens y (G, L / G, D): rows (L, D), in parts where they are many, so that
        no more than a part of the hidden layer is in memory.
        """
        rows = y.reshape(-1, y.shape[-1])
        size, parts = self.config.portion(len(rows)), []
        for part in mx.split(rows, list(range(size, len(rows), size))):
            hidden = self.ffn.hidden(part)
            pace(hidden)
            parts.append(self.ffn.fc2(hidden))
            pace(parts[-1])
        return parts


class Head(nn.Module):
    """The last norm, modulated by the time embedding itself, and the projection; all float32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = mx.zeros((2, config.dim))
        self.linear = Linear(config.dim, int(np.prod(config.patch)) * config.out_dim)

    def __call__(self, stream: Stream, time: mx.array) -> mx.array:
        shift, scale = mx.split(self.modulation + time[:, None], 2, 1)  # (G, 1, D) each
        x = stream.normed(shift, scale, plus_one=True, eps=self.eps, dtype=mx.float32)
        return self.linear(x)


class ImageEmbedding(nn.Module):
    """Brings CLIP's tokens to the width of the transformer (MLPProj in the official code)."""

    def __init__(self, config: DiTConfig, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, 1e-5)
        self.fc1 = Linear(width, width)
        self.fc2 = Linear(width, config.dim)
        self.norm2 = nn.LayerNorm(config.dim, 1e-5)

    def __call__(self, x: mx.array) -> mx.array:
        x = layer_norm(x, self.norm1, matmul_dtype(self.fc1))
        x = self.fc2(gelu_exact(self.fc1(x), dtype=x.dtype))
        return layer_norm(x, self.norm2, x.dtype)


def sinusoid(timesteps: Sequence[float], width: int) -> mx.array:
    """Embed timesteps as cosines, then sines (G, width); float64 until the end, as officially."""
    half = width // 2
    ladder = 10000.0 ** -(np.arange(half) / half)
    phase = np.outer(np.asarray(timesteps, dtype=np.float64), ladder)
    return mx.array(np.concatenate([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32))


class DiT(nn.Module):
    """One expert: noisy latent, timestep and conditions to velocities.

    `blocks` may be any iterable of blocks: a list, or what reads them from the disk one by one.
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
        """Embed a prompt's rows (L, text_dim) and, in Wan2.1 I2V, CLIP's tokens (257, clip_dim).

        Officially zero rows fill the text up to `text_len`, and attention, which has no mask, sees
        them. They are equal, so one is embedded, and repeated where attention looks.
        """
        rows = self.config.text_len - text.shape[0]
        assert rows >= 0 and (clip is None) == (self.config.clip_dim is None)
        zero = [(0, min(rows, 1)), (0, 0)]
        padded = mx.pad(text.astype(matmul_dtype(self.text_embedding.fc1)), zero)
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
        """Predict the velocity (out_dim, F, H, W), float32, of latent x (C, F, H, W) under each
        condition.

        `timesteps` holds one, or one for each latent frame; `y` are channels that follow x's. All
        conditions go through a block together; `lazy` leaves all evaluation to the caller.
        """
        time, modulation = self.embed_time(timesteps)
        counts = grid(x.shape[1:], self.config.patch)
        assert len(timesteps) in (1, counts[0]), (len(timesteps), counts)
        tokens = self.embed_video(x, y).reshape(len(timesteps), -1, self.config.dim)
        table = rope.tables(counts, self.config.dim // self.config.heads)
        streams = [Stream(tokens) for _ in conditions]
        pace = unpaced if lazy else Paced(self.config.ahead(tokens.size // self.config.dim))
        del tokens  # the streams' alone, and gone with their first change
        self._advance(streams, conditions, modulation, table, pace)
        velocities = []
        for stream in streams:
            values = self.head(stream, time)
            velocities.append(unpatches(values, counts, self.config.patch))
            pace(velocities[-1])
        return velocities

    def _advance(
        self,
        streams: Sequence[Stream],
        conditions: Sequence[Condition],
        time: mx.array,
        table: rope.Tables,
        pace: Pace,
    ) -> None:
        """Take equal streams through all blocks, each under its condition."""
        shared: list[mx.array] = []

        def attend_self(
            block: Block, index: int, number: int, ask: Callable[[], object]
        ) -> mx.array:
            # until they meet their text, all streams are the same
            if index > 0:
                return block.attend_self(streams[number], time, table, pace, ask)
            if number == 0:
                y = block.attend_self(streams[0], time, table, pace, ask)
                shared.extend([y] * len(streams))
                for stream in streams:
                    stream.x = streams[0].x
            return shared.pop()

        def step(index: int, block: Block, number: int, ask: Callable[[], object]) -> None:
            kept = conditions[number].kept.get(index)
            if kept is None:
                kept = block.cross_attn.keys_values(conditions[number])
                pace(*kept)
                if isinstance(self.blocks, list):
                    conditions[number].kept[index] = kept
            y = [attend_self(block, index, number, ask)]
            block.attend_text(streams[number], y, time, kept, pace)

        through(self.blocks, len(streams), step)

    def embed_time(self, timesteps: Sequence[float]) -> tuple[mx.array, mx.array]:
        """Time embedding (G, D) and its projection (G, 6, D) in float32."""
        time = self.time_embedding(sinusoid(timesteps, self.config.freq_dim))
        projected = self.time_projection(silu(time, dtype=mx.float32))
        return time, projected.reshape(len(timesteps), 6, -1)  # (G, 6, D)

    def embed_video(self, x: mx.array, y: mx.array | None = None) -> mx.array:
        """Embed the patches of x and y into tokens (L, D), float32, ordered frame, row, column."""
        video = x if y is None else mx.concatenate([x, y])
        assert video.shape[0] == self.config.in_dim, (video.shape, self.config.in_dim)
        return self.patch_embedding(patches(video.astype(mx.float32), self.config.patch))
