"""Where a block's time goes: each piece alone at full size, against what its bytes or operations
need.

Run by bench/dit.py. A piece is evaluated several times over in one call, on two sets of inputs made
before, so that no launch is waited for and no input is still in a cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from msgspec.structs import replace

from bench import limits
from bench.weights import Random, Rows, measure
from wanpipe.backend.device import compute_dtype, mlx_dtype
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models import rope
from wanpipe.models.config import DiTConfig
from wanpipe.models.dit import Block, DiT, Stream
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

SETS, COPIES = 2, 8  # inputs of a piece, evaluations in one call
FEW = 2  # evaluations of what takes milliseconds
FULL = 4  # bytes of a float32


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One operation of a block, which has it `times` times: bytes that it reads and writes, and
    floating point operations of a matrix unit at most at `ceiling` a second.
    """

    name: str
    times: int = 1
    bytes: int
    operations: float = 0.0
    ceiling: float = limits.MATMUL

    @property
    def limit(self) -> float:
        """Least seconds of one evaluation."""
        return max(self.bytes / limits.BANDWIDTH, self.operations / self.ceiling)


def counted(config: DiTConfig, tokens: int, itemsize: int = 2) -> list[Piece]:
    """Count one pass through a block, as models/dit.py has it on CUDA, where what a name joins
    with commas is one pass over memory; `itemsize` is that of products.
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
        Piece(name="keys or values, their means", times=2, bytes=2 * row),
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
    """Arrays as a block has them: the stream, what products take and give, the text's heads."""

    stream: mx.array  # (B, L, D), float32
    row: mx.array  # (B, L, D)
    keys: mx.array  # (L, D), as self attention gets them
    hidden: mx.array  # (B, L, F)
    kept: tuple[mx.array, ...]  # (T, D)
    gate: mx.array  # (B, 1, D), float32


def draw(config: DiTConfig, tokens: int, dtype: mx.Dtype) -> Inputs:
    """Draw one set."""
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
        kept=tuple(normal(config.text_len, D) for _ in range(2)),
        gate=normal(1, 1, D, dtype=mx.float32),
    )


def runs(
    block: Block, table: rope.Tables, dtype: mx.Dtype
) -> dict[str, Callable[[Inputs], mx.array | tuple[mx.array, ...]]]:
    """What evaluates each piece, by its name."""
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
        "keys or values, their means": lambda i: pad_keys(i.row[0]),
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
    """Seconds of one evaluation: the median of `n` calls of several evaluations each."""
    copies = FEW if few else COPIES
    work = [sets[index % len(sets)] for index in range(copies)]
    return measure(lambda: mx.eval([run(inputs) for inputs in work]), n).seconds / copies


def bench(name: str, config: DiTConfig, latent: Triple, repeats: int, rows: Rows) -> None:
    """Time every piece of a block, their sum, and the block."""
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    one = replace(config, layers=1, clip_dim=None)
    network = Random(DiT(one), rules.ROWS).fill(DiT(one), dtype)
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
        tell(rows, f"{name}, {piece.name}", piece, took)

    def advance(i: Inputs) -> tuple[mx.array, ...]:
        # as in a row of blocks, each adds what the one before left to be added
        stream = Stream(i.stream, [i.row], i.gate)
        block(stream, time, table, i.kept)
        return stream.x, *stream.parts

    whole = seconds(advance, sets, True, repeats)
    rows.tell(
        f"{name}, block",
        tokens=tokens,
        ms=1e3 * whole,
        sum_of_pieces_ms=1e3 * total,
        limit_ms=1e3 * least,
        over_sum=whole / total,
        over_limit=whole / least,
    )


def tell(rows: Rows, subject: str, piece: Piece, took: float) -> None:
    """Print one piece."""
    rows.tell(
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
