"""Times one pass of a network whose tokens several devices share, and compares every bit.

    python -m bench.token_share [NAME] [--devices 2] [--layers N]

NAME is a key of DITS in bench/sizes.py, by default `1.3b`. Starts a process for each device. All
have the same random weights; the first one also times the network alone. Prints one row for one
pass, as at guidance 1, and one for two.
"""

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx

from bench.dit import LENGTHS, chosen_size
from bench.sizes import DITS
from bench.weights import Random, Rows, measure, parser
from wanpipe.backend import group as groups
from wanpipe.backend.device import compute_dtype, mlx_dtype
from wanpipe.backend.token_share import WHOLE, TokenShare
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models.dit import DiT

RANK = "MLX_RANK"  # set where this process is one of the group


def start(count: int) -> int:
    """Start this program for each device, and return the first exit status that is not 0."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "bench.token_share", *sys.argv[1:]]
        environments = groups.local_environments(count, Path(folder))
        ranks = [subprocess.Popen(words, env={**os.environ, **own}) for own in environments]
        return next(filter(None, [rank.wait() for rank in ranks]), 0)


def bench(name: str, args: Namespace, rows: Rows) -> None:
    """Time one and two passes, alone and together."""
    group = groups.join()
    config, latent = chosen_size(name, args)
    mx.random.seed(0)
    network = Random(DiT(config), rules.RULES).fill(
        DiT(config), mlx_dtype(compute_dtype("bfloat16"))
    )
    x = mx.random.normal((config.in_dim, *latent))
    texts = [mx.random.normal((length, config.text_dim)) for length in LENGTHS]
    conditions = [network.condition(text) for text in texts]
    mx.eval(x, [condition.text for condition in conditions])

    def velocities(passes: int, share: TokenShare) -> list[mx.array]:
        return network(x, [500.0], conditions[:passes], share=share)

    def together(run: Callable[[], list[mx.array]]) -> None:
        mx.eval(group.gather(mx.zeros(1)))  # all begin at the same time
        mx.eval(run())

    for passes in (1, 2):
        alone, shared = (partial(velocities, passes, share) for share in (WHOLE, TokenShare(group)))
        one = measure(partial(together, alone), args.repeats)
        mx.clear_cache()
        several = measure(partial(together, shared), args.repeats)
        same = all(bool(mx.all(a == b)) for a, b in zip(alone(), shared(), strict=True))
        if group.rank == 0:
            rows.print(
                f"{name}, {passes} passes, {group.size} devices",
                layers=config.layers,
                alone=one.seconds,
                shared=several.seconds,
                speedup=one.seconds / several.seconds,
                same_bits=same,
                peak_alone_gb=one.peak / 1e9,
                peak_gb=several.peak / 1e9,
            )
        mx.clear_cache()


def main() -> None:
    """Start the devices, or be one of them."""
    options = parser(__doc__)
    options.add_argument("name", nargs="?", default="1.3b", choices=DITS)
    options.add_argument("--devices", type=int, default=2)
    options.add_argument("--layers", type=int, help="Number of blocks, if not all.")
    args = options.parse_args()
    if RANK not in os.environ:
        raise SystemExit(start(args.devices))
    rows = Rows(args.json)
    if os.environ[RANK] == "0":
        rows.print_machine()
    bench(args.name, args, rows)


if __name__ == "__main__":
    main()
