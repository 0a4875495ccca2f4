"""Times how long weights take from a file to the device, beside the speed of plain reads.

    python -m bench.read [--model 14b] [--repeats 3] [--cold]

Writes a file of random weights in the official size, which is in the page cache afterwards. Then
reads it into buffers of the size that wanpipe uses, with as many threads (`read`), loads the
network (`load`), and loads it through MLX's own reader (`mlx`), in turn. Goal: loading at 0.9 times
the speed of plain reads. `--cold` drops the file from the page cache before each of these.
"""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from bench.dit import small
from bench.sizes import DITS
from bench.text import drop_cached
from bench.weights import Random, Rows, parser
from wanpipe.backend.device import compute_dtype, mlx_dtype
from wanpipe.backend.pinned import BUFFER_BYTES, BUFFERS, THREADS
from wanpipe.checkpoints.rules import dit as rules
from wanpipe.models.config import DiTConfig
from wanpipe.models.dit import DiT
from wanpipe.weights.load import Weights, load_network

GOAL = 0.9


def plain(path: Path, buffer: memoryview) -> None:
    """Read a file with threads into a buffer, again and again, one part for each thread."""
    size, part = path.stat().st_size, len(buffer) // THREADS
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(THREADS) as pool:

        def read(number: int) -> None:
            view = buffer[number * part : (number + 1) * part]
            for offset in range(number * part, size, THREADS * part):
                os.preadv(file.fileno(), [view], offset)

        list(pool.map(read, range(THREADS)))


def load(config: DiTConfig, path: Path, dtype: mx.Dtype) -> DiT:
    """Load a network as wanpipe does."""
    network = load_network(DiT(config), path, dtype)
    mx.eval(network.parameters())
    return network


def through_mlx(config: DiTConfig, path: Path, dtype: mx.Dtype) -> DiT:
    """Load a network through MLX's reader."""
    weights = Weights(path, dtype)
    read = weights.through_mlx(list(weights.stored))
    network = DiT(config)
    network.load_weights([(name, weights.cast(name, array)) for name, array in read])
    # touches all numbers, so that they are on the device
    mx.eval([array.sum() for _, array in tree_flatten(network.parameters())])
    return network


def same(config: DiTConfig, path: Path, dtype: mx.Dtype) -> bool:
    """Return whether both ways give the same numbers."""
    arrays = dict(tree_flatten(load(config, path, dtype).parameters()))
    weights = Weights(path, dtype)
    read = weights.through_mlx(list(weights.stored))
    return all(mx.array_equal(weights.cast(name, array), arrays[name]) for name, array in read)


def seconds(call: Callable[[], object]) -> float:
    """Return the time of a call, with no memory kept by MLX before or after."""
    mx.synchronize()
    start = time.perf_counter()
    call()
    mx.synchronize()
    taken = time.perf_counter() - start
    mx.clear_cache()
    return taken


def main() -> None:
    """Write the file, and read it in each way in turn."""
    options = parser(__doc__)
    options.add_argument("--model", default="14b", choices=list(DITS))
    options.add_argument("--cold", action="store_true", help="Read from the disk.")
    options.add_argument("--folder", type=Path, help="Directory for the file.")
    args = options.parse_args()
    config = small(DITS[args.model][0]) if args.small else DITS[args.model][0]
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    rows = Rows(args.json)
    rows.print_machine()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "model.safetensors"
        start = time.perf_counter()
        size = Random(DiT(config), rules.RULES).write(path).bytes
        mx.clear_cache()
        rows.print("file", gb=size / 1e9, written=time.perf_counter() - start)
        buffer = memoryview(np.ones(BUFFERS * BUFFER_BYTES, np.uint8))
        ways: dict[str, Callable[[], object]] = {
            "read": lambda: plain(path, buffer),
            "load": lambda: load(config, path, dtype),
            "mlx": lambda: through_mlx(config, path, dtype),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, call in ways.items():
                if args.cold:
                    drop_cached(path)
                taken[name].append(seconds(call))
        for name, times in taken.items():
            rows.print(name, first=times[0], best=min(times), gb_s=size / 1e9 / min(times))
        ratio = min(taken["read"]) / min(taken["load"])
        equal = same(config, path, dtype)
        rows.print("ratio", ratio=ratio, goal=GOAL, same_numbers=equal)


if __name__ == "__main__":
    main()
