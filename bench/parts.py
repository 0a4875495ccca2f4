"""Times each piece of a block alone, and compares it with the limit of its bytes or operations.

Run by bench/dit.py. Each call evaluates a piece several times on two sets of inputs, so that it
waits for no launch and finds no input in a cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from msgspec import UNSET
from msgspec.structs import replace

from bench import limits
from bench.weights import Random, Rows, measure
from wanpipe.backend.device import compute_dtype, mlx_dtype
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models import rope
from wanpipe.models.config import DiTConfig
from wanpipe.models.dit import Block, DiT, Stream
from wanpipe.models.dit_blocks import KV
from wanpipe.models.geometry import Triple
from wanpipe.models.layers import (
    add_norm,
    attend,
    gelu,
    grid,
    pad_keys,
    rms_norm,
    split_heads,
)

SETS, COPIES = 2, 8  # sets of inputs, evaluations per call
FEW = 2  # evaluations per call of a piece that takes milliseconds
FULL = 4  # bytes of a float32


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One operation, which a block runs `times` times.

    `bytes` counts reads and writes. `operations` run on matrix units, at most `ceiling` per second.
    """

    name: str
    times: int = 1
    bytes: int
    operations: float = 0.0
    ceiling: float = limits.MATMUL

    @property
    def limit(self) -> float:
        """Shortest possible time of one evaluation, in seconds."""
        return max(self.bytes / limits.BANDWIDTH, self.operations / self.ceiling)


def counted(config: DiTConfig, tokens: int, itemsize: int = 2) -> list[Piece]:
    """Count the pieces of one block as models/dit.py runs it on CUDA.

    A name with commas is one fused kernel. `itemsize` is the size of a product's items in bytes.
    """
    D, F, T = config.dim, config.ffn_dim, config.text_len
    stream, row, hidden = (tokens * n for n in (D * FULL, D * itemsize, config.ffn_dim * itemsize))
    tables = tokens * (D // config.heads // 2) * 3 * FULL
    attention = {"ceiling": limits.ATTENTION}
    side, wide = D * D * itemsize, D * F * itemsize
    square, oblong = 2.0 * tokens * D * D, 2.0 * tokens * D * F
    return [
        Piece(name="gated addition, norm, modulate", bytes=2 * stream + 2 * row),
        Piece(name="product", times=6, bytes=2 * row + side, operations=square),
        Piece(name="norm, rotate", times=2, bytes=2 * row + tables),
        Piece(name="keys or values, padded", times=2, bytes=2 * row),
        Piece(
            name="self attention",
            bytes=4 * row,
            operations=4.0 * tokens * tokens * D,
            **attention,
        ),
        Piece(name="gated addition, norm3", bytes=2 * stream + 2 * row),
        Piece(name="norm of cross q", bytes=2 * row),
        Piece(
            name="cross attention",
            bytes=2 * row + 2 * T * D * itemsize,
            operations=4.0 * tokens * T * D,
            **attention,
        ),
        Piece(name="addition, norm, modulate", bytes=2 * stream + 2 * row),
        Piece(name="fc1", bytes=row + hidden + wide, operations=oblong),
        Piece(name="gelu", bytes=2 * hidden),
        Piece(name="fc2", bytes=row + hidden + wide, operations=oblong),
    ]


@dataclass(frozen=True)
class Inputs:
    """Arrays of a block: the stream, inputs and outputs of products, the text's keys and values."""

    stream: mx.array  # (B, L, D), float32
    row: mx.array  # (B, L, D)
    keys: mx.array  # (L, D), padded for self attention
    hidden: mx.array  # (B, L, F)
    kept: tuple[mx.array, mx.array]  # (T, D)
    gate: mx.array  # (B, 1, D), float32


def draw(config: DiTConfig, tokens: int, dtype: mx.Dtype) -> Inputs:
    """Draw one set of inputs."""
    D = config.dim

    def normal(*shape: int, dtype: mx.Dtype = dtype) -> mx.array:
        array = mx.random.normal(shape).astype(dtype)
        mx.eval(array)
        return array

    row = normal(1, tokens, D)
    keys = pad_keys(row[0])
    mx.eval(keys)
    return Inputs(
        stream=normal(1, tokens, D, dtype=mx.float32),
        row=row,
        keys=keys,
        hidden=normal(1, tokens, config.ffn_dim),
        kept=(normal(config.text_len, D), normal(config.text_len, D)),
        gate=normal(1, 1, D, dtype=mx.float32),
    )


def runs(
    block: Block, table: rope.Tables, dtype: mx.Dtype
) -> dict[str, Callable[[Inputs], mx.array | tuple[mx.array, ...]]]:
    """Return a function for each piece, by name."""
    attention, cross, heads = block.self_attn, block.cross_attn, block.self_attn.heads
    width, norm3, weight = block.modulation.shape[-1], block.norm3, attention.norm_q.weight
    like = {"eps": block.config.eps, "dtype": dtype}

    def split(x: mx.array) -> mx.array:
        return split_heads(x, heads)

    return {
        "gated addition, norm, modulate": lambda i: add_norm(
            i.stream, [i.row], i.gate, i.gate, i.gate, plus_one=True, **like
        ),
        "product": lambda i: attention.q(i.row),
        "norm, rotate": lambda i: rope.norm_rotate(
            i.row.reshape(-1, width), weight, table, width=width // heads, eps=norm3.eps
        ),
        "keys or values, padded": lambda i: pad_keys(i.row[0]),
        "self attention": lambda i: attend(split(i.row), split(i.keys), split(i.keys)),
        "gated addition, norm3": lambda i: add_norm(
            i.stream, [i.row], i.gate, norm3.bias, norm3.weight, plus_one=False, **like
        ),
        "norm of cross q": lambda i: rms_norm(i.row, cross.norm_q),
        "cross attention": lambda i: attend(*map(split, (i.row, *i.kept))),
        "addition, norm, modulate": lambda i: add_norm(
            i.stream, [i.row], None, i.gate, i.gate, plus_one=True, **like
        ),
        "fc1": lambda i: block.ffn.fc1(i.row),
        "gelu": lambda i: gelu(i.hidden, dtype=dtype),
        "fc2": lambda i: block.ffn.fc2(i.hidden),
    }


def seconds(run: Callable[[Inputs], Any], sets: Sequence[Inputs], few: bool, n: int) -> float:
    """Return the seconds of one evaluation, the median of `n` calls."""
    copies = FEW if few else COPIES
    work = [sets[index % len(sets)] for index in range(copies)]
    return measure(lambda: mx.eval([run(inputs) for inputs in work]), n).seconds / copies


def bench(name: str, config: DiTConfig, latent: Triple, repeats: int, rows: Rows) -> None:
    """Time every piece of a block, and the whole block."""
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    one = replace(config, layers=1, clip_dim=None, vace_layers=UNSET, vace_in_dim=UNSET)
    network = Random(DiT(one), rules.RULES).fill(DiT(one), dtype)
    [block] = network.blocks
    counts = grid(latent, config.patch)
    table = rope.tables(counts, config.dim // config.heads)
    tokens = counts[0] * counts[1] * counts[2]
    sets = [draw(one, tokens, dtype) for _ in range(SETS)]
    time = mx.random.normal((1, 6, config.dim))
    mx.eval(time, table)
    total = least = 0.0
    work = runs(block, table, dtype)
    for piece in counted(one, tokens, dtype.size):
        took = seconds(work[piece.name], sets, piece.operations > 1e12, repeats)
        total, least = total + piece.times * took, least + piece.times * piece.limit
        print_piece(rows, f"{name}, {piece.name}", piece, took)

    def advance(i: Inputs) -> tuple[mx.array, ...]:
        # like in a model, the block first applies the pending addition of the block before
        stream = Stream(i.stream, [i.row], i.gate)
        block(stream, time, table, KV(text=i.kept))
        return stream.x, *stream.parts

    whole = seconds(advance, sets, True, repeats)
    rows.print(
        f"{name}, block",
        tokens=tokens,
        ms=1e3 * whole,
        sum_of_pieces_ms=1e3 * total,
        limit_ms=1e3 * least,
        over_sum=whole / total,
        over_limit=whole / least,
    )


def print_piece(rows: Rows, subject: str, piece: Piece, took: float) -> None:
    """Print the row of one piece."""
    rows.print(
        subject,
        times=piece.times,
        ms=1e3 * took,
        limit_ms=1e3 * piece.limit,
        over_limit=took / piece.limit,
        megabytes=piece.bytes / 1e6,
        gflop=piece.operations / 1e9,
        tb_per_second=piece.bytes / took / 1e12,
        tflops=piece.operations / took / 1e12,
    )
