"""Times the full-size text encoder (T5-XXL) on 512 tokens, with random weights.

    python -m bench.text [--small] [--folder DIR]

Writes a converted file (11.4 GB). Times `encode`, which streams the blocks, from the page cache and
after dropping the file from it; reading the blocks without computing; reading the file's bytes; and
the resident network. Goals: 1.2 times the reading of the bytes, 1.5 GB. On a file system in memory,
dropping the file has no effect.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from msgspec.structs import replace

from bench.sizes import T5_XXL
from bench.weights import Random, Rows, measure, parser, read_plainly
from wanpipe.backend.device import compute_dtype, memory_limit, mlx_dtype
from wanpipe.checkpoints.rules import umt5 as rules
from wanpipe.models.config import T5Config
from wanpipe.models.umt5 import T5, Block
from wanpipe.pipeline import budget
from wanpipe.pipeline.budget import ITEMSIZE
from wanpipe.pipeline.encoders.text import encode
from wanpipe.weights.load import load_network
from wanpipe.weights.stream import StreamedBlocks, numbered

TOKENS = 512
SMALL = {"vocab": 1000, "dim": 128, "attention_dim": 128, "ffn_dim": 256, "heads": 2, "layers": 4}


def drop_cached(path: Path) -> None:
    """Ask the system to drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(path: Path, run: Callable[[], None]) -> float:
    """Return the seconds of a call after dropping the file from the page cache."""
    drop_cached(path)
    start = time.perf_counter()
    run()
    mx.synchronize()
    return time.perf_counter() - start


def resident(path: Path, config: T5Config, ids: list[int], repeats: int, rows: Rows) -> None:
    """Time the resident network."""
    network = load_network(T5(config), path, mlx_dtype(compute_dtype("bfloat16")))
    timing = measure(lambda: mx.eval(network(ids)), repeats)
    flops = budget.text_plan(config, 1, [len(ids)]).flops
    rows.print(
        "t5, resident",
        tokens=len(ids),
        seconds=timing.seconds,
        tflops=flops / timing.seconds / 1e12,
        peak_gb=timing.peak / 1e9,
    )


def streamed(
    path: Path, config: T5Config, blocks: int, ids: list[int], repeats: int, rows: Rows
) -> None:
    """Time the streamed encoder, and reading alone, with a warm and a cold page cache."""
    dtype = mlx_dtype(compute_dtype("bfloat16"))
    need = budget.text_plan(config, blocks, [len(ids)])

    def run() -> None:
        with memory_limit(need.limit):
            mx.eval(encode(path, config, [ids], dtype))

    def read() -> None:
        makers = numbered(lambda: Block(config), config.layers)
        for _ in StreamedBlocks(path=path, makers=makers, dtype=dtype):
            pass

    timing, reading = measure(run, repeats), measure(read, repeats).seconds
    plainly = read_plainly(path)
    rows.print(
        "t5, streamed, warm",
        seconds=timing.seconds,
        reading_blocks=reading,
        over_reading=timing.seconds / reading,
        reading_bytes=plainly,
        over_reading_bytes=timing.seconds / plainly,
        peak_gb=timing.peak / 1e9,
        expected_gb=need.peak / 1e9,
        peak_over_expected_percent=100 * (timing.peak / need.peak - 1),
    )
    whole, reading = cold(path, run), cold(path, read)
    rows.print(
        "t5, streamed, cold",
        seconds=whole,
        reading_blocks=reading,
        over_reading=whole / reading,
    )


def main() -> None:
    """Write the file and measure."""
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="Directory for the file.")
    args = options.parse_args()
    config = replace(T5_XXL, **SMALL) if args.small else T5_XXL
    mx.random.seed(0)
    rows = Rows(args.json)
    rows.print_machine()
    tokens = 64 if args.small else TOKENS
    ids = [int(i) for i in mx.random.randint(0, config.vocab, (tokens,))]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "t5_encoder.safetensors"
        random = Random(T5(config), rules.RULES)
        start = time.perf_counter()
        random.write(path)
        rows.print("t5, file", gigabytes=random.bytes / 1e9, written=time.perf_counter() - start)
        itemsize = ITEMSIZE[compute_dtype("bfloat16")]
        blocks = (random.parameters - config.vocab * config.dim) * itemsize
        streamed(path, config, blocks, ids, args.repeats, rows)
        gc.collect()
        mx.clear_cache()
        resident(path, config, ids, args.repeats, rows)


if __name__ == "__main__":
    main()
