"""Measures the remote: what it adds to a step, how fast a model is pulled, and a listing.

    python -m bench.remote [--server seaweedfs] [--steps 10] [--seconds 1] [--gigabytes 1]

`--server` starts a server on this machine, see `bench.remote_servers`. `--url` measures a remote
that is there, with the credentials of the environment, and deletes what it wrote. A step waits for
SECONDS instead of computing, and has the arrays of 1.3B at 832x480, 81 frames.
"""

import argparse
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.remote_servers import SERVERS, started
from tests.store.builders import recipe
from wanpipe.cache.remote.bucket import Bucket, each
from wanpipe.cache.remote.tier import opened
from wanpipe.cache.remote.whole import list_remote
from wanpipe.store import Draft, Publisher, Store
from wanpipe.store.schema import STAGES

SHAPE = (16, 21, 60, 104)
READS = 3  # of a model; the median counts


@contextmanager
def place(url: str | None, name: str) -> Iterator[str]:
    """Give the URL of an empty folder in a remote, and delete what is in it in the end."""
    if url is None:
        with started(name) as server:
            os.environ |= server.variables
            yield f"{server.url}/bench"
        return
    made = f"{url.rstrip('/')}/{secrets.token_hex(4)}"
    try:
        yield made
    finally:
        bucket = Bucket(made)
        bucket.delete([path for path, _, _ in bucket.objects("")])


def step_seconds(store: Store, steps: int, seconds: float) -> float:
    """Return the median time of a step that computes for so many seconds."""
    values = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)

    def fill(draft: Draft) -> dict[str, Any]:
        time.sleep(seconds)
        for name in ("latent", "x0", "solver/sample", "solver/x0_before"):
            draft.write(name, values)
        return {"device": "none", "wanpipe": "0", "mlx": "0", "peak_bytes": 0}

    took = []
    with Publisher(store) as publisher:
        for number in range(steps):
            started = time.perf_counter()
            publisher.get_or_create(recipe(number), fill)
            took.append(time.perf_counter() - started)
    return median(took)


def steps(url: str, folder: Path, count: int, seconds: float) -> None:
    """Measure steps without and with a remote."""
    alone = step_seconds(Store(folder / "alone"), count, seconds)
    store = Store(folder / "shared")
    with opened(url, "steps", store):
        shared = step_seconds(store, count, seconds)
        begun = time.perf_counter()
    rest = time.perf_counter() - begun
    percent = 100 * (shared / alone - 1)
    print(f"a step: {alone:.4f} s alone, {shared:.4f} s with a remote ({percent:+.2f} %)")
    print(f"after the last step, {rest:.2f} s until everything is pushed", flush=True)


def model(url: str, folder: Path, size: int) -> None:
    """Measure how fast a model of `size` bytes is pushed and pulled."""
    data, target, bucket = folder / "model", folder / "pulled", Bucket(url)
    data.write_bytes(np.random.default_rng(1).bytes(size))
    begun = time.perf_counter()
    bucket.upload("model", data)
    pushed = time.perf_counter() - begun
    pulled = []
    for _ in range(READS):
        begun = time.perf_counter()
        bucket.download("model", target, size)
        pulled.append(time.perf_counter() - begun)
        target.unlink()
    write, read = (size / took / 1e9 for took in (pushed, median(pulled)))
    print(f"{size / 1e9:g} GB, {url[:5]}: pushed at {write:.2f} GB/s, pulled at {read:.2f} GB/s")


def listing(url: str, entries: int) -> None:
    """Measure how fast entries are listed."""
    bucket = Bucket(f"{url}/listed")
    names = [f"denoise/{number:032x}" for number in range(entries)]
    begun = time.perf_counter()
    each(lambda name: bucket.put(f"{name}/zarr.json", b"{}"), names)
    wrote = time.perf_counter() - begun
    begun = time.perf_counter()
    found = list_remote(bucket, list(STAGES))
    took = time.perf_counter() - begun
    assert found == names
    print(
        f"{entries} entries, {url[:5]}: written in {wrote:.0f} s, listed in {took:.2f} s",
        flush=True,
    )


def main() -> None:
    """Measure steps, a pull and a listing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", choices=SERVERS, default="moto")
    parser.add_argument("--url", help="of a remote that is there, instead of --server")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--entries", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, place(args.url, args.server) as url:
        folder = Path(name)
        steps(url, folder, args.steps, args.seconds)
        for one in (url, f"file://{folder}/share"):
            model(one, folder, int(args.gigabytes * 1e9))
            listing(one, args.entries)


if __name__ == "__main__":
    main()
