"""Carries out a large sweep on simulated workers, whose commands only wait.

    python -m bench.sweep_simulated [--videos 1000] [--workers 64] [--faster 60]

The scheduler is a process of its own, all workers are in another one, and this process submits the
nodes as `wanpipe sweep` does. A video takes a text (shared by 20), 60 s of steps, give or take
20 %, and 3 s of decoding; all of it `--faster` times as fast. `efficiency` is the work divided by
the time of all workers, from the first submission to the last result. `scheduler_load` is the share
of one processor core that the scheduler would take at the real speed.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from bench.weights import Rows, parser
from tests.sweeps.clusters import scheduler
from wanpipe.runtime.report import Report
from wanpipe.store import Store
from wanpipe.sweeps import connection, tasks
from wanpipe.sweeps.node import Graph, Node
from wanpipe.sweeps.run import Options, carry_out
from wanpipe.sweeps.worker import GPU

TEXT, STEPS, DECODE, SPREAD = 2.0, 60.0, 3.0, 0.2  # seconds
SHARED = 20  # videos of one text
MORE = {"resources": {GPU: 1}, "memory_limit": 0, "dashboard": False}


async def nap(key: str, stage: str, command: tuple[str, ...]) -> tasks.Made:
    """Wait instead of a command."""
    started = time.monotonic()
    await asyncio.sleep(float(command[0]))
    seconds = time.monotonic() - started
    return {"worker": "", "seconds": seconds, "computed": 1, "loaded": []}


def make_graph(videos: int, faster: float) -> Graph:
    """Return the nodes of a sweep. Their commands are seconds."""
    chance, nodes = random.Random(1), []

    def add(key: str, stage: str, seconds: float, *needs: str) -> None:
        words = (str(seconds / faster),)
        nodes.append(Node(key=key, stage=stage, command=words, needs=needs))

    for number in range(videos):
        text, steps, frames = (f"{kind}{number:031x}" for kind in "abc")
        text = f"a{number // SHARED:031x}"
        if number % SHARED == 0:
            add(text, "encode-text", TEXT)
        add(steps, "denoise", STEPS * chance.uniform(1 - SPREAD, 1 + SPREAD), text)
        add(frames, "decode", DECODE, steps)
    return Graph(nodes=tuple(nodes))


async def work(address: str, count: int) -> None:
    """Be so many workers, in one event loop."""
    import dask
    from distributed import Worker

    # each would take a part of the one core that all have
    dask.config.set({"distributed.worker.profile.enabled": False})
    workers = [
        Worker(address, nthreads=1, name=str(number), heartbeat_interval="5s", **MORE)
        for number in range(count)
    ]
    await asyncio.gather(*workers)
    print("ready", flush=True)
    await asyncio.gather(*(worker.finished() for worker in workers))


@contextmanager
def simulated(address: str, count: int) -> Iterator[None]:
    """Start the process of the workers."""
    words = ["-m", "bench.sweep_simulated", "--serve", address, "--workers", str(count)]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Carry out the sweep, and print how well the workers were used."""
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--videos", type=int, default=1000)
    options.add_argument("--workers", type=int, default=64)
    options.add_argument("--faster", type=float, default=60.0)
    options.add_argument("--serve", help=argparse.SUPPRESS)
    args = options.parse_args()
    connection.load()
    if args.serve:
        asyncio.run(work(args.serve, args.workers))
        return
    import psutil

    rows = Rows(args.json)
    rows.print_machine()
    graph = make_graph(args.videos, args.faster)
    total = sum(float(node.command[0]) for node in graph.nodes)
    with scheduler() as (process, address), simulated(address, args.workers):
        before = sum(psutil.Process(process.pid).cpu_times()[:2])
        started = time.monotonic()
        with patch.object(tasks, "make", nap):
            found = carry_out(graph, Options(scheduler=address), Store("cache", Report()), None)
        wall = time.monotonic() - started
        spent = sum(psutil.Process(process.pid).cpu_times()[:2]) - before
    assert {outcome.state for outcome in found.values()} == {"done"}
    rows.print(
        f"{args.videos} videos, {args.workers} workers, {args.faster:g} times as fast",
        tasks=len(graph.nodes),
        wall=wall,
        ideal=total / args.workers,
        efficiency=total / args.workers / wall,
        scheduler_cpu_ms_a_task=1000 * spent / len(graph.nodes),
        scheduler_load=spent / (wall * args.faster),
    )


if __name__ == "__main__":
    main()
