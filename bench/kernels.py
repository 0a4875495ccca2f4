"""Compares the CUDA kernels of wanpipe.backend.cuda_kernels with the same functions in plain MLX.

    python -m bench.kernels [--small]

Prints the relative L2 error, the largest difference and both times of each kernel, at the tokens of
832x480x81 and the widths of 1.3B and 14B, and at the VAE's largest layers. Without CUDA only plain
MLX runs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from bench.weights import Rows, parser
from wanpipe.models import layers, rope
from wanpipe.models.vae import causal_conv
from wanpipe.models.vae.causal_conv import CausalCache, CausalConv, Norm, sum_terms

CHOOSERS = (layers, rope, causal_conv)  # modules that choose between the kernel and plain MLX
CUDA = layers.is_cuda()
EPS = 1e-6
HEAD = 128
GRID = (21, 30, 52)  # tokens of 81 frames of 832x480
WIDTHS = {1536: 8960, 5120: 13824}  # of 1.3B and 14B, with the widths of the feed forward
PIXELS = (
    (96, 2, 480, 832),
    (192, 4, 240, 416),
    (256, 2, 352, 640),
    (96, 3, 37, 45),  # fills no tile
)  # channels, frames, height, width
REPEATS = 10

Work = Callable[[], Sequence[mx.array]]


def normal(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Draw a normal array."""
    array = mx.random.normal(shape).astype(dtype)
    mx.eval(array)
    return array


def of_blocks(width: int, hidden: int, grid: tuple[int, int, int]) -> Iterator[tuple[str, Work]]:
    """Yield the operations of a transformer block other than products and attention."""
    half = mx.bfloat16
    tokens = grid[0] * grid[1] * grid[2]
    x, y = normal(1, tokens, width), normal(1, tokens, width, dtype=half)
    gate, shift, scale = (normal(1, 1, width) for _ in range(3))
    bias, weight = normal(width), normal(width)
    inner, table = normal(1, tokens, hidden, dtype=half), rope.tables(grid, HEAD)
    rows = y.reshape(-1, width)
    cuts = [-(-tokens // 4) * number for number in (1, 2, 3)]
    parts = [mx.contiguous(part) for part in mx.split(rows, cuts)]
    mx.eval(parts, table)
    like = {"eps": EPS, "dtype": half}
    gated = partial(layers.add_norm, x, [y], gate, bias, weight, plus_one=False, **like)
    plain = partial(layers.add_norm, x, [y], None, shift, scale, plus_one=True, **like)
    of_parts = partial(layers.add_norm, x, parts, gate, shift, scale, plus_one=True, **like)
    turn = partial(rope.norm_rotate, rows, weight, table, width=HEAD, eps=EPS)
    yield "gated addition, norm", gated
    yield "addition, norm, modulate", plain
    yield "norm, rotate", lambda: [turn()]
    yield "keys padded with means", lambda: [layers.append_group_means(rows, 8)]
    yield "gelu", lambda: [layers.gelu(inner, dtype=half)]
    yield "gated addition of parts, norm, modulate", of_parts


def of_vae(channels: int, frames: int, rows: int, columns: int) -> Iterator[tuple[str, Work]]:
    """Yield the norm that joins frames, the convolutions after it, and the first and last layer."""
    half, norm, sides = mx.bfloat16, Norm(channels), (rows, columns)
    norm.gamma = normal(channels)
    x, before = (normal(n, *sides, channels, dtype=half) for n in (frames, 2))
    pixels, earlier = (normal(n, *sides, 3, dtype=half) for n in (frames, 2))

    def convolution(inputs: int, outputs: int) -> CausalConv:
        conv = CausalConv(inputs, outputs)
        scale = (27 * inputs) ** -0.5
        conv.weight = (mx.random.normal(conv.weight.shape) * scale).astype(half)
        conv.bias = normal(outputs, dtype=half)
        mx.eval(conv.parameters())
        return conv

    def later(conv: CausalConv, x: mx.array, before: mx.array, *more: Any) -> list[mx.array]:
        past = CausalCache(lazy=True)
        past.first = False
        past.append(before)
        return [conv(x, past, *more)]

    inner = convolution(channels, channels)
    yield "sum of two and biases", lambda: [sum_terms(x, x, inner.bias, dtype=half)]
    yield "norm, SiLU, join", lambda: norm.concat(before, x)
    yield "norm, SiLU, join, convolve", partial(later, inner, x, before, norm)
    yield "norm, SiLU, join, convolve, add", partial(later, inner, x, before, norm, x)
    yield "last layer", partial(later, convolution(channels, 3), x, before, norm)
    yield "first layer", partial(later, convolution(3, channels), pixels, earlier)


def run(work: Work, cuda: bool) -> tuple[float, Sequence[mx.array]]:
    """Return the seconds of one evaluation, and the result."""
    for module in CHOOSERS:
        module.is_cuda = lambda: cuda
    result = work()
    mx.eval(result)
    mx.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        mx.eval(work())
    mx.synchronize()
    return (time.perf_counter() - start) / REPEATS, result


def compare(name: str, work: Work, rows: Rows) -> None:
    """Print the row of one operation."""
    seconds, expected = run(work, False)
    if not CUDA:
        rows.print(name, plain_ms=1e3 * seconds, kernel="needs CUDA")
        return
    ours, got = run(work, True)
    pairs = [
        [np.array(array.astype(mx.float32)).astype(np.float64) for array in pair]
        for pair in zip(got, expected, strict=True)
    ]
    rows.print(
        name,
        kernel_ms=1e3 * ours,
        plain_ms=1e3 * seconds,
        times=seconds / ours,
        relative_l2=max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs),
        largest=max(float(np.abs(a - b).max()) for a, b in pairs),
    )


def main() -> None:
    """Compare every operation."""
    args = parser(__doc__).parse_args()
    rows = Rows(args.json)
    rows.print_machine()
    grid = (2, 3, 4) if args.small else GRID
    for width, hidden in {256: 512}.items() if args.small else WIDTHS.items():
        for name, work in of_blocks(width, hidden, grid):
            compare(f"{width}, {name}", work, rows)
    for channels, frames, *sides in ((16, 4, 6, 8),) if args.small else PIXELS:
        for name, work in of_vae(channels, frames, sides[0], sides[1]):
            compare(f"VAE {channels}, {name}", work, rows)


if __name__ == "__main__":
    main()
