"""Ends runs of all five stages at random moments and checks that no entry is lost.

    python -m bench.kills [--count N] [--signal KILL|INT|TERM|HUP]... [--within]

Several signals alternate at random. `--within` runs everything in one process, which is faster,
except for KILL. The tests do the same a few times (tests/test_kills.py, tests/test_interrupts.py).
"""

import argparse
import signal
import tempfile
import time
from pathlib import Path

from tests.soak import Campaign, inner_run, whole_run
from tests.test_kills import killed_run


def main() -> None:
    """End runs, check the cache, and print how much was computed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="How many runs to end.")
    parser.add_argument(
        "--signal",
        choices=("KILL", "INT", "TERM", "HUP"),
        action="append",
        help="Signal to send. Repeatable; default: KILL.",
    )
    parser.add_argument("--within", action="store_true", help="Run everything in one process.")
    parser.add_argument("--seed", type=int, default=11, help="Seed of the moments.")
    args = parser.parse_args()
    numbers = [signal.Signals[f"SIG{name}"] for name in args.signal or ("KILL",)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = inner_run if args.within else whole_run
        run = killed_run if signal.SIGKILL in numbers else run
        tally = Campaign(Path(folder), run, numbers, args.seed).go(args.count)
    took, names = time.monotonic() - started, " or ".join(one.name for one in numbers)
    print(
        f"{tally.ended} × {names} in {took:.0f} s: {tally.made} entries made, "
        f"{tally.finished} runs finished first, none lost"
    )


if __name__ == "__main__":
    main()
