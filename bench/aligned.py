"""Whether attention gains from keys in multiples of 128, where the missing ones are means.

    python -m bench.aligned [NAME...] [--layers N]

An experiment (NOTES.md): no part of the package. A mean key scores the mean of all scores, so it
weighs at most 1 / L; n of them, with mean values, move a result by at most n / L of its distance
from the mean value. Steps are timed in turn, each way after the other, since a GPU's clock drifts;
the velocities' relative difference is told too.
"""

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from bench.dit import chosen_size
from bench.sizes import DITS
from bench.weights import Random, Rows, parser, relative
from wanpipe.device import compute_dtype, mlx_dtype
from wanpipe.models.dit import DiT, SelfAttention
from wanpipe.models.layers import joined, split_heads
from wanpipe.weights.rules import dit as rules

KEYS = 128  # of a tile of cuDNN's attention
EVERY = 32  # rows, of which one counts in a sampled mean

Mean = Callable[[mx.array], mx.array]
MEANS: dict[str, Mean] = {
    "product by ones": lambda x: mx.ones((1, len(x)), x.dtype) @ x / len(x),
    "mx.mean": lambda x: x.mean(axis=0, keepdims=True),
    f"mx.mean of every {EVERY}th row": lambda x: x[::EVERY].mean(axis=0, keepdims=True),
}
plain = SelfAttention.heads_of


def with_means(mean: Mean) -> Callable[..., tuple[mx.array, ...]]:
    """Make a `heads_of` that gives keys and values followed by their means."""

    def heads_of(self: SelfAttention, *args: Any) -> tuple[mx.array, ...]:
        q, *pair = plain(self, *args)
        rows = [joined(heads)[0] for heads in pair]  # (L, D)
        count = -len(rows[0]) % KEYS
        if not count:
            return q, *pair
        more = (mx.broadcast_to(mean(one), (count, one.shape[1])) for one in rows)
        k, v = (mx.concatenate(both) for both in zip(rows, more, strict=True))
        return q, split_heads(k, self.heads), split_heads(v, self.heads)

    return heads_of


def bench(name: str, asked: Namespace, rows: Rows) -> None:
    """Compare on one network."""
    config, latent = chosen_size(name, asked)
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    network = Random(DiT(config), rules.ROWS).fill(DiT(config), dtype)
    x = mx.random.normal((config.in_dim, *latent))
    texts = [mx.random.normal((length, config.text_dim)) for length in (60, 130)]
    conditions = [network.condition(text) for text in texts]

    def step() -> tuple[np.ndarray, float]:
        mx.synchronize()
        start = time.perf_counter()
        velocities = network(x, [500.0], conditions)
        mx.eval(velocities)
        mx.synchronize()
        return np.array(velocities[0]), time.perf_counter() - start

    ways = {"as the package": plain, **{name: with_means(mean) for name, mean in MEANS.items()}}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    results: dict[str, np.ndarray] = {}
    for turn in range(1 + asked.repeats):
        for way, heads_of in ways.items():
            SelfAttention.heads_of = heads_of
            results[way], seconds = step()
            if turn:
                taken[way].append(seconds)
    reference = results["as the package"]
    for way, seconds in taken.items():
        middle = statistics.median(seconds)
        over = middle / statistics.median(taken["as the package"])
        differs = relative(results[way], reference)
        rows.tell(f"{name}, {way}", seconds=middle, shortest=min(seconds), over=over, by=differs)


def main() -> None:
    """Compare on the networks that are named."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(DITS))
    options.add_argument("--layers", type=int, help="fewer blocks than the network has")
    asked = options.parse_args()
    mx.random.seed(0)
    rows = Rows(asked.json)
    rows.start()
    for name in asked.names or ("1.3b",):
        if DITS[name][0].in_dim == 36:
            options.error(f"{name} takes an image, which is not made here")
        bench(name, asked, rows)


if __name__ == "__main__":
    main()
