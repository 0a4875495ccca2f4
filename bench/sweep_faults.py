"""Kills workers and schedulers of sweeps at random.

    python -m bench.sweep_faults [--workers 20] [--schedulers 5] [--seed 1]

Each sweep must end with the entries of plain runs, bit for bit, and leave no process. The tests do
the same a few times (tests/sweeps/test_run.py, tests/sweeps/test_cluster.py).
"""

import argparse
import tempfile
import time
from pathlib import Path

from stages import convert
from tests.sweeps.faults import killed_schedulers, killed_workers
from wanpipe import demo
from wanpipe.store import Store

ROUND = 5  # kills of one sweep


def main() -> None:
    """Kill, and print how many kills changed no bit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--schedulers", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as where, demo.checkpoint("t2v") as source:
        params = convert.Params(checkpoint_dir=source, output_dir=Path(where) / "model")
        model = convert.run(params, Store(Path(where) / "cache"))
        for name, work in (("workers", killed_workers), ("schedulers", killed_schedulers)):
            started = time.monotonic()
            count, wanted = 0, getattr(args, name)
            while count < wanted:
                with tempfile.TemporaryDirectory() as folder:
                    some = min(ROUND, wanted - count)
                    count += work(model, Path(folder), some, args.seed + count)
            took = time.monotonic() - started
            print(
                f"{count} {name} killed in {took:.0f} s: no bit changed, nothing lost", flush=True
            )


if __name__ == "__main__":
    main()
