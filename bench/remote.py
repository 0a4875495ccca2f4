"""Measures the remote tier: what it adds to a step, how fast a model is pulled, and a listing.

    python -m bench.remote [--steps 10] [--seconds 1] [--gigabytes 1] [--entries 100000]

The S3 server is moto's, in a process of its own on this machine. A step waits for SECONDS instead
of computing, and has the arrays of 1.3B at 832x480, 81 frames.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.buckets import create_bucket, environment
from tests.store.builders import recipe
from wanpipe.cache.remote.bucket import Bucket
from wanpipe.cache.remote.tier import opened
from wanpipe.cache.remote.whole import list_remote
from wanpipe.store import Draft, Publisher, Store
from wanpipe.store.schema import STAGES

SHAPE = (16, 21, 60, 104)
PORT = 5077


@contextmanager
def server() -> Iterator[str]:
    """Start moto's S3 server, with a bucket."""
    endpoint = f"http://127.0.0.1:{PORT}"
    words = [sys.executable, "-m", "moto.server", "-p", str(PORT)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, stdout=quiet, stderr=quiet)
    try:
        wait_for(PORT)
        create_bucket(endpoint)
        os.environ |= environment(endpoint)
        yield "s3://films/bench"
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    """Wait until a server on this machine listens at a port."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)


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


def main() -> None:
    """Measure steps, a pull and a listing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--entries", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, server() as url:
        folder = Path(name)
        alone = step_seconds(Store(folder / "alone"), args.steps, args.seconds)
        store = Store(folder / "shared")
        with opened(url, "steps", store):
            shared = step_seconds(store, args.steps, args.seconds)
            begun = time.perf_counter()
        rest = time.perf_counter() - begun
        percent = 100 * (shared / alone - 1)
        print(f"a step: {alone:.4f} s alone, {shared:.4f} s with a remote ({percent:+.2f} %)")
        print(f"after the last step, {rest:.2f} s until everything is pushed", flush=True)

        size = int(args.gigabytes * 1e9)
        data = folder / "model"
        data.write_bytes(np.random.default_rng(1).bytes(size))
        for place in (url, f"file://{folder}/share"):
            bucket = Bucket(place)
            bucket.upload("model", data)
            target = folder / "pulled"
            begun = time.perf_counter()
            bucket.download("model", target, size)
            took = time.perf_counter() - begun
            target.unlink()
            print(f"{size / 1e9:g} GB from {place[:5]}: {size / took / 1e9:.2f} GB/s", flush=True)

        listed = folder / "listed" / "denoise"
        for number in range(args.entries):
            entry = listed / f"{number:032x}"
            entry.mkdir(parents=True)
            (entry / "zarr.json").write_bytes(b"{}")
        begun = time.perf_counter()
        found = list_remote(Bucket(f"file://{folder}/listed"), list(STAGES))
        took = time.perf_counter() - begun
        assert len(found) == args.entries
        print(f"{len(found)} entries of a directory listed in {took:.2f} s")


if __name__ == "__main__":
    main()
