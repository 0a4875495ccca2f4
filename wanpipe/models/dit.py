"""The diffusion transformer (DiT) of Wan2.1 and Wan2.2, one class for all variants.

Takes one video at a time, without padding. Source: wan/modules/model.py, `WanModel`, and
wan/modules/vace_model.py, `VaceWanModel`.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from msgspec import UNSET

from wanpipe.backend.token_share import WHOLE, TokenShare
from wanpipe.models import rope
from wanpipe.models.config import DiTConfig
from wanpipe.models.dit_blocks import (
    Block,
    Condition,
    ContextStreams,
    Join,
    Stream,
    VaceBlock,
)
from wanpipe.models.execution import BoundedEval, Evaluate, Prefetch, defer_eval, run_blocks
from wanpipe.models.layers import (
    MLP,
    Linear,
    from_patches,
    gelu,
    gelu_exact,
    grid,
    layer_norm,
    matmul_dtype,
    silu,
    to_patches,
)
from wanpipe.models.tuning import eval_depth

__all__ = ["Block", "Condition", "DiT", "Stream", "sinusoid"]


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


def make_block(config: DiTConfig, name: str) -> Block:
    """Make an empty block, by its name; only VACE's first one has `before_proj`."""
    row, number = name.split(".")
    return Block(config) if row == "blocks" else VaceBlock(config, first=number == "0")


class DiT(nn.Module):
    """One expert: predict velocities from a noisy latent, its timestep and conditions.

    `blocks` may be any iterable of blocks: a list, or one that gives all blocks in order, those of
    VACE among them (see `DiTConfig.block_names`). If they are `streamed`, every pass gets new ones.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.streamed = config, False
        self.patch_embedding = Linear(int(np.prod(config.patch)) * config.in_dim, dim)
        self.text_embedding = MLP(config.text_dim, dim, dim, gelu)
        self.time_embedding = MLP(config.freq_dim, dim, dim, silu)
        self.time_projection = Linear(dim, 6 * dim)
        self.blocks: Iterable[Block] = [Block(config) for _ in range(config.layers)]
        self.head = Head(config)
        if config.vace_in_dim is not UNSET:
            self.vace_patch_embedding = Linear(int(np.prod(config.patch)) * config.vace_in_dim, dim)
            names = [f"vace_blocks.{number}" for number in range(config.vace_count)]
            self.vace_blocks = [make_block(config, name) for name in names]
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
        context: mx.array | None = None,
        context_scale: float = 1.0,
        lazy: bool = False,
        share: TokenShare = WHOLE,
    ) -> list[mx.array]:
        """Predict the velocity (out_dim, F, H, W), float32, of latent x under each condition.

        x is (C, F, H, W); `y` are channels appended to it. Pass one timestep, or one per latent
        frame. All conditions run through a block before the next block. `lazy` leaves all
        evaluation to the caller. VACE needs its `context` (vace_in_dim, F, H, W), whose frames are
        those of x, references included; its hints are added times `context_scale`. Devices that
        `share` the tokens call this together, and all return the whole velocities.
        """
        time, modulation = self.embed_time(timesteps)
        counts = grid(x.shape[1:], self.config.patch)
        assert len(timesteps) in (1, counts[0]), (len(timesteps), counts)
        tokens = self.embed_video(x, y).reshape(len(timesteps), -1, self.config.dim)
        table = rope.tables(counts, self.config.dim // self.config.heads)
        join = partial(share.join, shape=tokens.shape[:2])
        if share.group.size > 1:
            rows = (part.reshape(*tokens.shape[:2], *part.shape[1:]) for part in table)
            cos, sin = (share.cut(part).flatten(0, 1) for part in rows)
            table = cos, sin
        tokens = share.cut(tokens)
        streams = [Stream(tokens) for _ in conditions]
        vace = self._begin_vace(context, tokens, context_scale, share)
        depth = eval_depth(tokens.size // self.config.dim, self.config.dim)
        evaluate = defer_eval if lazy else BoundedEval(depth)
        del tokens  # the streams drop it with their first change
        self._run_blocks(streams, conditions, vace, (modulation, table, join), evaluate)
        velocities = []
        for stream in streams:
            values = self.head(stream, time)
            values = join(values.reshape(-1, values.shape[-1]))  # (L, P)
            velocities.append(from_patches(values, counts, self.config.patch))
            evaluate(velocities[-1])
        return velocities

    def _begin_vace(
        self, context: mx.array | None, tokens: mx.array, scale: float, share: TokenShare
    ) -> ContextStreams | None:
        """Embed the context of VACE; other networks take none."""
        assert (context is None) == (self.config.vace_in_dim is UNSET), self.config.vace_in_dim
        if context is None:
            return None
        assert context.shape[0] == self.config.vace_in_dim, context.shape
        patches = to_patches(context.astype(mx.float32), self.config.patch)
        embedded = self.vace_patch_embedding(patches).reshape(len(tokens), -1, self.config.dim)
        gate = mx.full((len(tokens), 1, self.config.dim), scale, mx.float32)
        return ContextStreams(context=share.cut(embedded), video=tokens, scale=gate)

    def _run_blocks(
        self,
        streams: Sequence[Stream],
        conditions: Sequence[Condition],
        vace: ContextStreams | None,
        modulation: tuple[mx.array, rope.Tables, Join],
        evaluate: Evaluate,
    ) -> None:
        """Run identical streams through all blocks, each with its condition.

        `modulation` is the projected time, the tables of RoPE, and what joins shared tokens.
        """
        time, table, join = modulation
        shared: list[mx.array] = []

        def attend_self(
            block: Block, first: bool, rows: Sequence[Stream], number: int, prefetch: Prefetch
        ) -> mx.array:
            # the streams are identical until the first cross-attention: compute that part once
            if not first:
                return block.attend_self(rows[number], time, table, evaluate, prefetch, join)
            if number == 0:
                y = block.attend_self(rows[0], time, table, evaluate, prefetch, join)
                shared.extend([y] * len(rows))
                for stream in rows:
                    stream.x = rows[0].x
            return shared.pop()

        def step(index: int, block: Block, number: int, prefetch: Prefetch) -> None:
            kv = conditions[number].kv_cache.get(index)
            if kv is None:
                kv = block.cross_attn.kv(conditions[number])
                evaluate(*kv.arrays)
                if not self.streamed:
                    conditions[number].kv_cache[index] = kv
            if vace is None or not isinstance(block, VaceBlock):
                y = [attend_self(block, index == 0, streams, number, prefetch)]
                block.attend_text(streams[number], y, time, kv, evaluate)
                return
            first = "before_proj" in block
            if first and number == 0:
                vace.begin(block, len(streams))
            y = [attend_self(block, first, vace.streams, number, prefetch)]
            block.attend_text(vace.streams[number], y, time, kv, evaluate)
            vace.add_hint(block, number, streams[number], evaluate)

        run_blocks(self._blocks_in_order(), len(streams), step)

    def _blocks_in_order(self) -> Iterable[Block]:
        """Give all blocks as they run: a VACE block follows its main block."""
        if not isinstance(self.blocks, list):
            return self.blocks
        rows = (name.split(".") for name in self.config.block_names)
        return [getattr(self, row)[int(number)] for row, number in rows]

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
